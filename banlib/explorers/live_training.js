export function mount(root, data) {}

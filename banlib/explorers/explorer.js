// Turns over the frames of an Explorer.
(() => {
  const root = document.getElementById({mark}), image = root.querySelector("img");
  const inputs = [...root.querySelectorAll("input")], outputs = root.querySelectorAll("output");
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const show = () => {
    let frame = 0;
    inputs.forEach((input, i) => {
      frame = frame * data.choices[i].length + +input.value;
      outputs[i].textContent = data.choices[i][input.value];
      input.setAttribute("aria-valuetext", data.choices[i][input.value]);
    });
    [image.alt, image.src] = [data.frames[frame][0], "data:image/png;base64," + data.frames[frame][1]];
  };
  inputs.forEach(input => input.addEventListener("input", show));
})();

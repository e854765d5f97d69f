"""Views: numbered crops and flips, against torch's padding, and what an epoch draws of them."""

import pytest
import torch
from torch.nn import functional as F

from banlib.views import Augmented, Split, Views, draw_epoch


def reference_view(image, pad, border, dy, dx, flipped):
    """The view of uint8 [C, H, W], by torch's padding, a slice and a flip."""
    size = image.shape[-1]
    mode = {"reflect": "reflect", "zero": "constant"}[border]
    padded = F.pad(image[None].double(), (pad,) * 4, mode=mode)[0]
    view = padded[:, dy : dy + size, dx : dx + size]
    return view.flip(2) if flipped else view


def random_split(count=5, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.zeros(count, dtype=torch.int64))


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4, 7])
def test_every_view_is_the_padded_image_cut_and_mirrored(pad, flip, border):
    split = random_split()
    augmented = Augmented(split, MEAN, STD, pad, flip, border)
    shifts = range(2 * pad + 1)
    wanted = [(dy, dx, flipped) for dy in shifts for dx in shifts for flipped in ([False, True] if flip else [False])]
    # The documented numbering counts through dy, dx, flipped, the last one fastest: every number once.
    assert [augmented.views.number(*view) for view in wanted] == list(range(augmented.count))
    assert augmented.count == len(wanted) == (2 * pad + 1) ** 2 * (1 + flip)
    indices = torch.arange(len(wanted)) % len(split.images)
    batch = augmented.batch(indices, torch.arange(len(wanted)))
    assert batch.dtype == torch.float32 and batch.shape == (len(wanted), 3, 8, 8)
    for number, (dy, dx, flipped) in enumerate(wanted):
        pixels = reference_view(split.images[indices[number]], pad, border, dy, dx, flipped)
        normalised = (pixels / 255 - MEAN[:, None, None].double()) / STD[:, None, None].double()
        torch.testing.assert_close(batch[number].double(), normalised, atol=2e-6, rtol=0)


@pytest.mark.parametrize("border", ["reflect", "zero"])
def test_the_identity_view_is_the_plain_image(border):
    augmented = Augmented(random_split(), MEAN, STD, 2, True, border)
    indices = torch.tensor([3, 0, 3])
    identity = torch.full((3,), augmented.views.identity)
    assert torch.equal(augmented.batch(indices, identity), augmented.plain(indices))
    plain = (random_split().images[indices] / 255 - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(augmented.plain(indices), plain, atol=2e-6, rtol=0)


def test_cifar_views_number_162():
    assert Views(4, True, "reflect", 32).count == 9 * 9 * 2


@pytest.mark.parametrize("pad", [8, -1, 1.5, True, "1", 10**9])
def test_a_pad_out_of_range_is_refused(pad):
    with pytest.raises(ValueError, match="pad must be an integer from 0 to 7 for 8x8 images"):
        Augmented(random_split(), MEAN, STD, pad, True, "reflect")


def test_other_borders_and_flips_are_refused():
    with pytest.raises(ValueError, match="border must be 'reflect' or 'zero', got 'edge'"):
        Views(1, True, "edge", 8)
    with pytest.raises(ValueError, match="flip must be True or False, got 'no'"):
        Views(1, "no", "zero", 8)


def test_an_index_or_view_out_of_range_is_refused():
    augmented = Augmented(random_split(), MEAN, STD, 1, False, "zero")
    for index, view in [(5, 0), (0, 9), (-1, 0), (0, -1)]:
        with pytest.raises((IndexError, RuntimeError)):
            augmented.batch(torch.tensor([index]), torch.tensor([view]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_the_gpu_is_the_batch_on_the_cpu_and_waits_for_nothing():
    split = random_split()
    indices, views = torch.arange(5), torch.arange(5) * 7
    on_cpu = Augmented(split, MEAN, STD, 4, True, "reflect").batch(indices, views)
    augmented = Augmented(split.to("cuda"), MEAN.cuda(), STD.cuda(), 4, True, "reflect")
    indices, views = indices.cuda(), views.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = augmented.batch(indices, views)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-6, rtol=0)


def test_images_that_are_not_square_are_refused():
    split = Split(torch.zeros(2, 3, 8, 6, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="square images, got 8x6"):
        Augmented(split, MEAN, STD, 1, True, "zero")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batches_have_the_layout_and_the_same_values(layout):
    plain, laid = (Augmented(random_split(), MEAN, STD, 2, True, "reflect", *own) for own in ((), (layout,)))
    indices, views = torch.arange(5), torch.arange(5) * 7
    for ours, expected in [(laid.batch(indices, views), plain.batch(indices, views)),
                           (laid.plain(indices), plain.plain(indices))]:  # fmt: skip
        assert torch.equal(ours, expected) and ours.is_contiguous(memory_format=layout)
        assert expected.is_contiguous()
    assert len(laid) == 5


# What an epoch draws


def test_an_epoch_shows_every_image_once_in_views_of_its_own():
    order, views = draw_epoch(1, 900, 9)
    assert order.dtype == views.dtype == torch.int64 and order.device.type == "cpu"
    assert torch.equal(order.sort().values, torch.arange(900))
    assert views.bincount(minlength=9).tolist() == pytest.approx([100] * 9, abs=40)  # four deviations of 9.4


def test_a_draw_is_a_function_of_its_seed_alone():
    """A permutation, then the views, from one generator: what stored runs were trained on."""
    torch.manual_seed(7)
    first, again, other = draw_epoch(1, 100, 9), draw_epoch(1, 100, 9), draw_epoch(2, 100, 9)
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(first[0], torch.randperm(100, generator=generator))
    assert torch.equal(first[1], torch.randint(9, (100,), generator=generator))

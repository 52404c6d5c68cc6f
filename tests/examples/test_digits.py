from __future__ import annotations

from importlib.resources import files
from types import SimpleNamespace

import torch

from trainrun.examples import digits


def model(**options: object) -> torch.nn.Module:
    return digits.build_model(SimpleNamespace(options=digits.Options(**options)))


def test_all_images_are_there() -> None:
    images, labels = digits.read_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_splits_share_no_image_and_leave_none_out() -> None:
    train, evaluation = digits.build_dataset("train"), digits.build_dataset("eval")
    assert (len(train), len(evaluation)) == (1438, 359)
    images, _ = digits.read_digits()
    assert torch.equal(evaluation.tensors[0], images[4::5])
    assert len(train) + len(evaluation) == len(images)
    assert digits.build_dataset("test") is None


def test_every_digit_is_in_both_splits() -> None:
    for split in ("train", "eval"):
        assert digits.build_dataset(split).tensors[1].unique().tolist() == list(range(10))


def test_steps_answer_with_scalars_and_predictions() -> None:
    network = model(channels=2, hidden=8)
    batch = digits.build_dataset("eval")[:7]
    assert digits.training_step(network, batch)["loss"].shape == ()
    answer = digits.evaluation_step(network, batch)
    shapes = {name: value.shape for name, value in answer.items()}
    assert shapes == {"loss": (), "accuracy": (), "predictions": (len(batch[0]),)}


def test_options_set_the_size() -> None:
    small, large = model(channels=2, hidden=8), model(channels=4, hidden=16)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters())


def test_source_and_licence_of_the_data_are_named() -> None:
    notice = files("trainrun.examples").joinpath("data/digits.txt").read_text(encoding="utf-8")
    for text in (notice, digits.__doc__ or ""):
        assert "UCI Machine" in text
        assert "CC BY 4.0" in text

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pydantic
import pytest
import torch

from trainrun import EnvironmentProblem
from trainrun.examples.chargpt import CharGPT, ChargptOptions, Windows, standard_library, write
from trainrun.testing import ForkRecipe

SMALL = {"layers": 1, "heads": 2, "width": 8, "context": 8, "size": 2000}


def task(**options: object) -> CharGPT:
    return CharGPT(ChargptOptions(**{**SMALL, **options}))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_text_is_the_standard_librarys_source() -> None:
    text = standard_library(200_000)
    assert len(text) == 200_000
    assert text.startswith(min(Path(sysconfig.get_path("stdlib")).glob("*.py")).read_bytes()[:1000])
    assert standard_library(1000) == text[:1000]


def test_a_python_without_sources_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="holds no Python source"):
        standard_library(1000)


def test_windows_ask_for_every_byte_once() -> None:
    windows = Windows(bytes(range(20)), 4)
    assert len(windows) == 4
    asked = [wanted for index in range(len(windows)) for wanted in windows[index][1].tolist()]
    assert asked == list(range(1, 17))
    given, wanted = windows[1]
    assert (given.tolist(), wanted.tolist()) == ([4, 5, 6, 7], [5, 6, 7, 8])


def test_the_last_tenth_of_the_text_is_held_out() -> None:
    train, evaluation = task().build_dataset("train"), task().build_dataset("eval")
    assert train is not None
    assert evaluation is not None
    assert (len(train), len(evaluation)) == (1799 // 8, 199 // 8)
    assert task().build_dataset("test") is None


def test_no_byte_depends_on_later_ones() -> None:
    torch.manual_seed(0)
    model = task().build_model().eval()
    text = torch.randint(0, 256, (1, 8))
    changed = text.clone()
    changed[0, 5] += 1
    same = torch.isclose(model(text), model(changed % 256)).all(dim=-1)[0]
    assert same.tolist() == [True] * 5 + [False] * 3


def test_evaluation_weighs_by_bytes() -> None:
    chargpt = task()
    model, windows = chargpt.build_model(), chargpt.build_dataset("eval")
    assert windows is not None
    batch = torch.utils.data.default_collate([windows[0], windows[1], windows[2]])
    answer = chargpt.evaluation_step(model, batch)
    assert {name: weight for name, (_, weight) in answer.items()} == {"loss": 24, "accuracy": 24}
    assert torch.equal(answer["loss"][0], chargpt.training_step(model, batch)["loss"])


def test_writing_is_repeatable_and_leaves_the_mode() -> None:
    model = task(dropout=0.5).build_model().train()
    first = write(model, "def ", 20, 1.0, generator())
    assert first == write(model, "def ", 20, 1.0, generator())
    assert first.startswith("def ")
    assert model.training
    assert write(model, "x", 10, 0.0, generator()) == write(model, "x", 10, 0.0, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("length", "printed"), [(5, True), (0, False)])
def test_a_sample_is_printed_at_the_end(length: int, printed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    chargpt = task(sample_length=length, prompt="import ")
    chargpt.build_model()
    recipe = SimpleNamespace(run=SimpleNamespace(seed=0))
    chargpt.on_train_end(SimpleNamespace(device=torch.device("cpu"), recipe=recipe))
    assert ("import " in capsys.readouterr().out) is printed


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"width \(8\) must be a multiple of heads \(3\)"):
        ChargptOptions(**{**SMALL, "heads": 3})


def test_perplexity_is_that_of_the_whole_split(fork_recipe: ForkRecipe) -> None:
    """The exponential of the mean over all bytes, on two ranks with a last batch that is not full."""
    recipe = """
    task = { use = "chargpt", layers = 1, heads = 2, width = 8, context = 8, size = 2000, sample_length = 0 }
    train = { steps = 2, batch_size = 4 }
    evaluate = { batch_size = 5 }
    """
    result = fork_recipe(recipe, workers=2)
    loss, perplexity = (result.series(f"eval/{name}")[2] for name in ("loss", "perplexity"))
    assert perplexity == pytest.approx(math.exp(loss), rel=1e-6)

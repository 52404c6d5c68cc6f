from __future__ import annotations

import json

from trainrun.doctor.finding import Settings, Verdict, reason, skipped


def test_the_worst_is_the_status() -> None:
    verdict = Verdict("x")
    verdict.say("fine")
    assert verdict.finding()[:4] == ("x", "ok", "fine", None)
    verdict.warn("odd", "look")
    assert verdict.finding().status == "warning"
    verdict.fail("broken", "mend it")
    verdict.warn("odd again", "look")
    assert verdict.finding(a=1)[:5] == ("x", "failed", "fine; odd; broken; odd again", "look; mend it", {"a": 1})


def test_a_finding_is_plain() -> None:
    assert json.loads(json.dumps(skipped("nccl", "no GPU").to_json())) == {
        "check": "nccl",
        "status": "skipped",
        "finding": "no GPU",
        "advice": None,
        "facts": {},
        "seconds": 0.0,
    }


def test_settings_take_what_a_check_has_found_out() -> None:
    assert Settings().updated({"settings": {"gpus": 2}, "workers": 9}) == Settings(gpus=2)


def test_an_error_in_one_line() -> None:
    assert reason(ValueError("\n\n  first\nsecond")) == "ValueError: first"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"

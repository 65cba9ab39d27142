"""What a training must have in common with the one that it resumes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rsp.components.train.history import State, read_state, write_state
from rsp.components.train.plan import Plan
from rsp.components.train.start import check_settings, settings_of
from rsp.shared.config import load_config
from rsp.shared.errors import ModelError
from tests.toy import make_config


@pytest.fixture
def plan(tmp_path):
    return Plan(load_config(make_config(tmp_path / "config.toml")), tmp_path, tmp_path / "out", epochs=2, seed=3)


def changed(plan, *, seed=3, model=None, recipe=None, weight=None):
    config = plan.config
    classes = (
        config.classes if weight is None else (replace(config.classes[0], weight=weight), *config.classes[1:])
    )
    return replace(
        plan,
        seed=seed,
        config=replace(
            config,
            model=replace(config.model, **(model or {})),
            recipe=replace(config.recipe, **(recipe or {})),
            classes=classes,
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "--seed = 3, and now it is 4"),
        ({"model": {"loss": "dice"}}, "loss = lovasz, and now it is dice"),
        ({"model": {"optimizer": "SGD"}}, "optimizer = Adam, and now it is SGD"),
        (
            {"model": {"optimizer_options": {"betas": [0.5, 0.9]}}},
            r"optimizer.betas = None, and now it is \[0.5, 0.9\]",
        ),
        ({"model": {"decay": 0.5}}, "decay = 0.0, and now it is 0.5"),
        ({"weight": 2.0}, r"\[\[classes\]\] weight = \[1.0, 1.0\], and now it is \[2.0, 1.0\]"),
        ({"recipe": {"ema": 0.9}}, r"\[train\] ema = 0.0, and now it is 0.9"),
        ({"recipe": {"freeze": 1}}, r"\[train\] freeze = 0, and now it is 1"),
        ({"recipe": {"layer_decay": 0.5}}, r"\[train\] layer_decay = 1.0, and now it is 0.5"),
        ({"recipe": {"label_smoothing": 0.1}}, r"\[train\] label_smoothing = 0.0, and now it is 0.1"),
        ({"recipe": {"classes_weights": "auto"}}, r"\[train\] classes_weights = None, and now it is auto"),
    ],
)
def test_training_that_would_not_go_on_as_it_began(plan, tmp_path, change, message):
    plan.out.mkdir()
    write_state(plan.out, State(1, "", "", "null", {}, {}, settings_of(plan), []))
    state = read_state(plan.out)
    check_settings(plan, state, "out")
    # More epochs, another rate or batch may be what is wanted.
    check_settings(changed(plan, model={"lr": 0.5, "bs": 7}, recipe={"clip": 1.0, "warmup": 0.2}), state, "out")
    with pytest.raises(
        ModelError, match=f"out is of a training with {message}: a training is resumed as it began"
    ):
        check_settings(changed(plan, **change), state, "out")
    for other in (changed(plan, **change),):  # and what has come in since
        again = replace(state, settings=settings_of(other))
        with pytest.raises(ModelError, match="is resumed as it began"):
            check_settings(plan, again, "out")

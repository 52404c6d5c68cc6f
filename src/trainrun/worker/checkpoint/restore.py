"""Resuming from a checkpoint: everything is restored, on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainrun.checkpoint import layout
from trainrun.checkpoint.manifest import Manifest, read_manifest
from trainrun.errors import BadCheckpoint, EnvironmentProblem
from trainrun.plugin import state as plugin_state
from trainrun.rundir.files import read_json
from trainrun.worker.checkpoint import capture, finite, reader, regroup, rng, settings, sharded_state
from trainrun.worker.checkpoint.changes import sentences
from trainrun.worker.data import compare, fingerprint
from trainrun.worker.parallel import seed_all

if TYPE_CHECKING:
    from trainrun.rundir import RunPaths
    from trainrun.worker.parallel import Collectives
    from trainrun.worker.session import Session

_SEEDS = 1_000_003  # a prime, so that the seeds of two steps are apart by more than any number of ranks
_BUILDING = ("optimizer.", "scheduler.", "task.", "providers.build_", "train.steps", "train.epochs")
_TRAINING = {"model": dict, "optimizer": dict, "place": dict, "disabled": list}
_OWN = {"rng": dict, "loader": dict, "metrics": dict}


@dataclass(frozen=True)
class Start:
    """The checkpoint from which an attempt resumes, as the client decided.

    differences: what changed since, by kind.
    """

    checkpoint: Path
    differences: Mapping[str, Any]


def find(paths: RunPaths, attempt: int, collectives: Collectives) -> Start | None:
    """Return the checkpoint from which the attempt starts.

    None for the beginning. Raises EnvironmentProblem if ranks see different things.
    """
    told = read_json(paths.start(attempt)) or {}
    name = told.get("checkpoint")
    found = None if name is None else Start(Path(name), told.get("differences") or {})
    if collectives.gather_objects is not None:
        everybody = collectives.gather_objects(_identity(found))
        strangers = [rank for rank, identity in enumerate(everybody) if identity != everybody[0]]
        if strangers:
            raise EnvironmentProblem(
                f"rank {strangers[0]} sees another checkpoint than rank 0 ({everybody[strangers[0]]}, {everybody[0]});"
                " is the run directory on a file system that all nodes share?"
            )
    return found


def _identity(start: Start | None) -> list[str]:
    if start is None:
        return []
    try:
        content = (start.checkpoint / layout.MANIFEST).read_bytes()
    except OSError as error:
        return [start.checkpoint.name, str(error.strerror)]
    return [start.checkpoint.name, hashlib.sha256(content).hexdigest()[:12]]


def restore(session: Session, start: Start) -> None:
    """Restore everything except the random generators.

    `Session.ready` restores those, as the last thing before the first step. Raises BadCheckpoint for contents that
    cannot be read, and TrainingError for those of another training.
    """
    manifest = read_manifest(start.checkpoint)
    saved = _table(start.checkpoint / layout.TRAINING, _TRAINING)
    own = _table(start.checkpoint / layout.rank_file(_rank(session, manifest)), _OWN)
    source = reader.Tensors(start.checkpoint)
    state, hook = session.state, session.hooks.on_resume_start
    regroup.rebuild(state, saved, hook and partial(hook, str(start.checkpoint)))
    _tensors(session, source, saved)
    changes = settings.apply(session.optimizer, state.scheduler, state.built, saved, manifest.step)
    if state.scaler is not None and saved["scaler"] is not None:
        state.scaler.load_state_dict(saved["scaler"])
    session.train.load_state_dict(own["loader"])
    if changed := compare(manifest.dataset, fingerprint(session.train.dataset)):
        session.warn(changed)
    session.resume_at(saved["place"], own["loader"]["epoch"])
    length = "the number of steps" if state.recipe.train.steps is None else "train.steps"
    for sentence in sentences(changes, state.scheduler, state.step, length=length):
        session.warn(sentence)
    if "built" not in saved and (unheard := _unheard(start.differences)):
        session.warn(
            "the checkpoint does not say what its optimizer and scheduler were built with, because an older trainrun"
            f" wrote it; so these changes do not reach them: {', '.join(unheard)}"
        )
    if manifest.world_size == state.world.size:
        state.metrics.load_state_dict(own["metrics"])
    for name in saved["disabled"]:
        session.hooks.disable(name)
    session.look_at_plan()
    plugins = sharded_state.put_back(_plugins(start.checkpoint, manifest, state.world.rank), source, session.model)
    if not manifest.finite:
        _require_finite(session, start.checkpoint, saved, plugins)
    session.carried = plugin_state.restore(session.hooks.members, plugins)
    same = manifest.world_size == state.world.size and "run.seed" not in start.differences.get("recipe", {})
    session.restore_randomness = partial(_randomness, session, own["rng"], same=same)


def _require_finite(session: Session, checkpoint: Path, saved: Mapping[str, Any], plugins: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint, on all ranks, if what was loaded is not finite.

    Only checkpoints of an older version can hold such values.
    """
    tensors, exempt = capture.tensors(session.model, session.optimizer), session.state.exempt
    weights = {name: one.shape for name, one in capture.model_tensors(session.model).items()}
    wanted = {name: one for name, one in tensors.items() if finite.must_be_finite(name, one.shape, weights, exempt)}
    mine = [*finite.not_finite(wanted), *finite.rates(saved)]
    mine += finite.not_finite(dict(finite.kept_weights(plugins, weights, exempt)))
    gather = session.collectives.gather_objects
    everybody: Any = [mine] if gather is None else gather(mine)
    if found := finite.of_ranks(everybody):
        raise BadCheckpoint(
            f"{checkpoint}: this checkpoint is not good: what it keeps is {finite.NOT_FINITE}{found}; begin from an"
            " older one with `trainrun resume RUN --from STEP`"
        )


def _table(path: Path, keys: Mapping[str, type]) -> dict[str, Any]:
    """Return the values in a file that must hold at least `keys`.

    Raises BadCheckpoint.
    """
    found = reader.read_values(path)
    if not isinstance(found, dict):
        raise BadCheckpoint(f"{path}: expected a dict, got a {type(found).__name__}")
    if wrong := [key for key, kind in keys.items() if not isinstance(found.get(key), kind)]:
        raise BadCheckpoint(f"{path}: missing, or of the wrong type: {', '.join(wrong)}")
    return found


def _randomness(session: Session, saved: dict[str, Any], *, same: bool) -> None:
    """Restore the generators, or seed them anew.

    With another number of ranks, or another seed, each rank gets a seed of its own. It is made of the recipe's seed,
    the step and the rank.
    """
    state = session.state
    if same:
        rng.restore(saved, state.device)
    else:
        seed_all((state.recipe.run.seed + 1 + state.world.rank + state.step * _SEEDS) % 2**63)


def _rank(session: Session, manifest: Manifest) -> int:
    rank = session.state.world.rank
    return rank if rank < manifest.world_size else 0


def _tensors(session: Session, source: reader.Tensors, saved: Mapping[str, Any]) -> None:
    found = source.stored
    capture.require_same_model(session.model, {name: one.size for name, one in found.items()})
    places, give = capture.optimizer_places(
        session.state, saved, {name: (one.size, one.properties.dtype) for name, one in found.items()}
    )
    model = {capture.MODEL + name: tensor.detach() for name, tensor in capture.model_tensors(session.model).items()}
    with torch.no_grad():
        source.read({**model, **places})
    capture.give_extra(session.model, saved["model"])
    give()


def _unheard(differences: Mapping[str, Any]) -> list[str]:
    """Return the changes that may be meant for optimizer and scheduler."""
    keys = [key for key in differences.get("recipe", {}) if key.startswith(_BUILDING)]
    return [*keys, *(f"plugin {name}" for name in differences.get("plugins", {}))]


def _plugins(checkpoint: Path, manifest: Manifest, rank: int) -> dict[str, Any]:
    """Return the state of each plugin.

    It is this rank's own if it has one, otherwise rank 0's.
    """
    found = {}
    for file in manifest.files:
        folder, _, name = file.rpartition("/")
        if folder == layout.PLUGINS and (owner := layout.plugin_of(name)) is not None:
            instance, of = owner
            if of == rank or (of is None and instance not in found):
                found[instance] = reader.read_values(checkpoint / file)
    return found

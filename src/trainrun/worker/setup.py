"""From a run directory to a session: plugins loaded and compared over ranks, providers asked, everything built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog
import tomli
import torch

from trainrun import hookspecs
from trainrun.builtin import SMOKE_CHECK
from trainrun.errors import EnvironmentProblem, TaskError
from trainrun.plugin import state as plugin_state
from trainrun.plugin.dispatch import Dispatcher
from trainrun.plugin.instance import Instance
from trainrun.plugin.links import Member
from trainrun.plugin.loading import Loaded, load_plugin
from trainrun.plugin.specs import by_name, own_specs
from trainrun.recipe import Recipe
from trainrun.rundir import RunPaths, secrets
from trainrun.rundir.files import append_line, read_json
from trainrun.worker.accept import require_optimizer, require_scheduler
from trainrun.worker.build import micro_batch_size, micro_batches
from trainrun.worker.built import Built
from trainrun.worker.checkpoint.finite import untrained
from trainrun.worker.checkpoint.restore import find, restore
from trainrun.worker.checkpoint.saver import Saver
from trainrun.worker.checkpoint.writer import About, Stages, Writer
from trainrun.worker.data import (
    BatchSizes,
    ForeignBatches,
    Giver,
    Items,
    SampledBatches,
    SampledLoader,
    bind_collate,
    fingerprint,
    prepare_processes,
    resumable,
)
from trainrun.worker.decisions import open_decisions
from trainrun.worker.evaluate import evaluate
from trainrun.worker.faults import Faults
from trainrun.worker.metrics import Metrics
from trainrun.worker.optim import unwrapped
from trainrun.worker.parallel import Collectives, be_deterministic, choose_device, seed_all
from trainrun.worker.run import Run
from trainrun.worker.saving import Saving, tell
from trainrun.worker.session import Session
from trainrun.worker.state import State
from trainrun.worker.ties import Ties
from trainrun.worker.world import Job, World

Logger = structlog.typing.FilteringBoundLogger

_COLLECTIVE_TIMEOUT = timedelta(minutes=30)


class Worker:
    """One rank before it trains: its state, its plugins, its hooks and its ties to the other ranks."""

    def __init__(self, paths: RunPaths, world: World, attempt: int, logger: Logger, ties: Ties) -> None:
        self.logger = logger
        self.ties = ties
        self.recipe = Recipe.from_data(secrets.restore("recipe", tomli.loads(paths.recipe.read_text())))
        device = choose_device(self.recipe.train.device, world)
        self.collectives = Collectives(world, device, _COLLECTIVE_TIMEOUT)
        self.state = self._state(paths, world, attempt, device)
        self.faults = Faults(self.state, logger)
        instances = read_instances(paths)
        self.state.smoke = any(instance.target == SMOKE_CHECK for instance in instances)
        loaded = [load_plugin(instance) for instance in instances]
        _compare_plugins(loaded, self.collectives)
        self.hooks = self._hooks(loaded)
        self.state.hooks = self.hooks
        self._unplaced: str | None = None  # why the place in the training data cannot be saved

    def session(self) -> Session:
        """Build everything, in the order of design: model, optimizer, data. Calls the provider hooks."""
        recipe, state, hooks = self.recipe, self.state, self.hooks
        if recipe.run.deterministic:
            be_deterministic(compiled=recipe.train.compile)
        seed_all(recipe.run.seed)
        model = self._module("build_model", recipe, state.device)
        state.model = self._module("parallelize_model", model.to(state.device), state.world)
        train = self._train_batches()
        state.epoch_progress = train.progress
        state.total_steps = _total_steps(recipe, train)
        self._build_optimizer(state.model)
        if recipe.train.precision == "fp16":
            state.scaler = torch.amp.GradScaler(state.device.type)
        evaluation = self._evaluation_loaders()
        _required(hooks, "training_step")
        if evaluation:
            _required(hooks, "evaluation_step", "or set evaluate.splits = []")
        seed_all(recipe.run.seed + 1 + state.world.rank)  # from here on ranks differ: dropout, augmentation
        plugin_state.collect(hooks.members, torch.is_tensor)
        assert state.model is not None
        assert state.optimizer is not None
        state.exempt = untrained(state.model)  # before a checkpoint is loaded
        session = Session(
            state=state,
            hooks=hooks,
            collectives=self.collectives,
            model=state.model,
            optimizer=state.optimizer,
            train=train,
            evaluation=evaluation,
            inbox=self.ties.inbox,
            faults=self.faults,
            logger=self.logger,
            record_event=self._event_writer(),
            evaluate=evaluate,
            saving=self._saving(train.dataset),
        )
        if session.saving.saves and self._unplaced is not None:
            session.warn(self._unplaced)
        self._go_on(session)
        return session

    def _module(self, hook: str, *arguments: Any) -> torch.nn.Module:
        """Call a provider hook that must return a module."""
        model = _required(self.hooks, hook)(*arguments)
        if not isinstance(model, torch.nn.Module):
            what = "None" if model is None else type(model).__name__
            raise TaskError(f"{hook} returned {what}; return a torch.nn.Module{self.hooks.whose(hook)}")
        return model

    def _build_optimizer(self, model: torch.nn.Module) -> None:
        """Build optimizer and scheduler, and record their settings.

        A resume may change these.
        """
        recipe, state, hooks = self.recipe, self.state, self.hooks
        optimizer = _required(hooks, "build_optimizer")(model, recipe)
        require_optimizer(optimizer, hooks.provider("build_optimizer"))
        state.optimizer, state.built = optimizer, Built(optimizer)
        state.scheduler = hooks.build_scheduler(optimizer, recipe) if hooks.build_scheduler else None
        require_scheduler(state.scheduler, optimizer, hooks.provider("build_scheduler"))
        state.built.complete(optimizer, state.scheduler, state.total_steps, unwrapped(model))

    def _saving(self, dataset: Any) -> Saving:
        recipe, paths, world = self.recipe, self.state.paths, self.state.world
        manifest = read_json(paths.manifest) or {}
        about = About(
            run=paths.run_id,
            attempt=self.state.attempt,
            recipe=tomli.loads(paths.recipe.read_text(encoding="utf-8")),
            plugins=manifest.get("plugins", {}),
            versions={name: version for name, version in manifest.get("versions", {}).items() if version},
            dataset=fingerprint(dataset),
            strategy=recipe.parallel.strategy,
        )
        share = self.collectives.apart().share
        keep, stages = recipe.checkpoint.keep, self._stages()
        writer = Writer(paths.checkpoints, about, world, share=share, keep=keep, stages=stages)
        told = partial(tell, self.state.decisions) if world.rank == 0 else None
        return Saving(recipe.checkpoint, Saver(writer, told), recipe.launch.grace, world.rank)

    def _stages(self) -> Stages:
        """Return how faults are injected into saves.

        A plugin may be called with how far each save is.
        """
        told = [(one.plugin, one.run) for one in self.hooks.members if hasattr(type(one.plugin), "reach_stage")]

        def reach(stage: str, step: int) -> None:
            for plugin, run in told:
                plugin.reach_stage(stage, step, run)

        return reach

    def _go_on(self, session: Session) -> None:
        """Load the attempt's checkpoint, if any, into what was built.

        The client chose it.
        """
        start = find(session.state.paths, session.state.attempt, self.collectives)
        if start is None:
            return
        restore(session, start)
        self.logger.info("resuming", checkpoint=str(start.checkpoint), step=session.state.step)
        if self.hooks.on_resume:
            self.hooks.on_resume(str(start.checkpoint), start.differences)

    def _state(self, paths: RunPaths, world: World, attempt: int, device: torch.device) -> State:
        log, store = paths.decisions(attempt, world.node_rank), f"trainrun/{paths.run_id}/{attempt}/decisions"
        return State(
            recipe=self.recipe,
            paths=paths,
            attempt=attempt,
            world=world,
            job=Job.from_environment(),
            device=device,
            metrics=Metrics(world.rank, self.collectives.gather, self.collectives.gather_objects),
            decisions=open_decisions(log, store, self.collectives, cuda=device.type == "cuda"),
            pulse=self.ties.pulse,
        )

    def _hooks(self, loaded: Sequence[Loaded]) -> Dispatcher:
        members = []
        for one in loaded:
            logger = self.logger.bind(plugin=one.instance.name)
            run = Run(self.state, one.instance, one.options, logger)
            members.append(Member(one.instance, one.plugin, one.description.impls, run))
        holders = [hookspecs, *(one.hookspecs for one in loaded if one.hookspecs is not None)]
        specs = by_name(own_specs(), *(one.description.specs for one in loaded))
        return Dispatcher(
            members,
            {name: spec for name, spec in specs.items() if spec.locus != "client"},
            holders,
            ranks=self.state.world.classes,
            providers=self.recipe.providers,
            on_fault=self.faults,
            pulse=self.state.pulse,
        )

    def _loader(self, split: str) -> Any:
        hooks, world = self.hooks, self.state.world
        dataset = hooks.build_dataset(self.recipe, split) if hooks.build_dataset else None
        loader = _required(hooks, "build_dataloader")(dataset, split, world)
        if loader is None:
            return None
        if not hasattr(loader, "__iter__"):
            what, whose = type(loader).__name__, hooks.whose("build_dataloader")
            raise TaskError(
                f"build_dataloader returned {what} for split {split!r}; return an iterable of micro-batches{whose}"
            )
        giver = Giver(world, self.recipe.run.seed, self.collectives.gather_objects)
        runs = micro_batches(self.recipe, world) if split == "train" else 1
        loader = giver.given(loader, f"split {split!r}", runs)
        if isinstance(items := getattr(loader, "dataset", None), Items):
            items.plan.warn = self._warn
        collate = hooks.detached("collate")
        if collate is not None and not bind_collate(loader, collate) and collate.provides:
            self._warn(
                f"the hook collate is not called for split {split!r}, because build_dataloader has returned a loader of"
                " its own; give that one a collate_fn, or leave out build_dataloader"
            )
        prepare_processes(loader, self.logger.warning)
        return loader

    def _warn(self, message: str) -> None:
        """Warn as `Session.warn`, before there is a session."""
        self.logger.warning(message)
        self._event_writer()({"event": "warning", "step": self.state.step, "reason": message})

    def _train_batches(self) -> SampledBatches | ForeignBatches:
        loader = self._loader("train")
        if loader is None:
            raise TaskError('no build_dataset or build_dataloader returned data for the split "train"; the task must')
        self._unplaced = resumable(loader)
        if isinstance(loader, SampledLoader):
            return SampledBatches(loader, self._batch_sizes())
        if self.hooks.choose_batch_size:
            raise TaskError(
                "a plugin implements choose_batch_size, but only the train loader of trainrun can change its batches;"
                " let build_dataset return a dataset that has a length, or disable that plugin"
            )
        world, table = self.state.world, self.recipe.train
        return ForeignBatches(
            loader,
            table.batch_size,
            micro_batches(self.recipe, world),
            world,
            self.collectives.gather_integer,
            seed=self.recipe.run.seed,
            warn=self.logger.warning,
        )

    def _batch_sizes(self) -> BatchSizes | None:
        ask, recipe, world = self.hooks.choose_batch_size, self.recipe, self.state.world
        if ask is None:
            return None
        unit = world.size * micro_batch_size(recipe, world)
        whose = self.hooks.whose("choose_batch_size")
        return BatchSizes(ask, recipe.train.batch_size, unit, self.collectives.gather_objects, whose)

    def _evaluation_loaders(self) -> dict[str, Iterable[Any]]:
        loaders = {split: self._loader(split) for split in self.recipe.evaluate.splits}
        missing = [split for split, loader in loaders.items() if loader is None]
        if missing:
            self.logger.warning("no dataset for splits of evaluate.splits: they are not evaluated", splits=missing)
        return {split: loader for split, loader in loaders.items() if loader is not None}

    def _event_writer(self) -> Callable[[Mapping[str, Any]], None]:
        def write(event: Mapping[str, Any]) -> None:
            if self.state.world.rank == 0:
                append_line(self.state.paths.events, dict(event))

        return write


def read_instances(paths: RunPaths) -> list[Instance]:
    """Return the plugin instances that the client resolved, in plan order."""
    manifest = read_json(paths.manifest)
    if manifest is None:
        raise EnvironmentProblem(f"{paths.manifest}: missing or unreadable; was this run made by `trainrun launch`?")
    return [Instance.from_json(instance) for instance in secrets.restore("instances", manifest["instances"])]


def _required(hooks: Dispatcher, name: str, otherwise: str = "") -> Callable[..., Any]:
    hook: Callable[..., Any] | None = getattr(hooks, name)
    if hook is None:
        raise TaskError(f"no plugin implements {name}; implement it in the task {otherwise}".rstrip())
    return hook


def _total_steps(recipe: Recipe, train: SampledBatches | ForeignBatches) -> int | None:
    if recipe.train.steps is not None:
        return recipe.train.steps
    assert recipe.train.epochs is not None
    return train.updates_in(recipe.train.epochs)


def _compare_plugins(loaded: Sequence[Loaded], collectives: Collectives) -> None:
    """Raise EnvironmentProblem if ranks have other plugins than rank 0.

    Versions and sources are compared too.
    """
    if collectives.gather_objects is None:
        return
    mine = {one.instance.name: _identity(one) for one in loaded}
    everybody = cast("list[dict[str, str]]", collectives.gather_objects(mine))
    for rank, theirs in enumerate(everybody):
        names = ", ".join(sorted({name for name, _ in theirs.items() ^ everybody[0].items()}))
        if names:
            raise EnvironmentProblem(
                f"rank {rank} has other sources than rank 0 of the plugins {names}; install the same everywhere"
            )


def _identity(loaded: Loaded) -> str:
    digest = hashlib.sha256(json.dumps(loaded.instance.to_json(), sort_keys=True, default=str).encode())
    if loaded.description.file:
        digest.update(Path(loaded.description.file).read_bytes())
    return digest.hexdigest()

"""A search for values by optuna, kept in a file: what was asked for and what came of it survive a kill.

What is proposed for the n-th trial is a function of the seed and of the trials before it, so a search that was killed
proposes what the unbroken one would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from incdet.config.space import Choices, Range, Space
from incdet.errors import CheckpointError, ConfigError
from incdet.randomness import derive_seed

FILE = "study.db"


@dataclass(frozen=True)
class Trial:
    """One trial of a search."""

    number: int
    values: Mapping[str, Any]  # by dotted key
    score: float | None = None  # None = it diverged, or has not finished


class Search:
    """Tree-structured Parzen estimators (optuna's default sampler) over a space; higher scores are better."""

    def __init__(self, folder: Path, space: Space, seed: int, question: Mapping[str, Any]) -> None:
        """Open the study in ``folder``, or begin one.

        Args:
            folder: where ``study.db`` lies.
            space: what is searched.
            seed: of the proposals.
            question: JSON-able; a study that was begun with another one is refused.

        Raises:
            ConfigError: optuna is not installed, or the study in ``folder`` answers another question.
            CheckpointError: the study cannot be read.
        """
        self._optuna = _import_optuna()
        self._seed = seed
        self._distributions = {key: self._distribution(allowed) for key, allowed in space.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with self._explaining(folder / FILE):
            self._study = self._optuna.create_study(
                storage=f"sqlite:///{(folder / FILE).resolve()}",
                study_name="sweep",
                direction="maximize",
                load_if_exists=True,
            )
            self._refuse_another(question, folder)

    def propose(self, values: Mapping[str, Any]) -> None:
        """Let these values be the next that are tried, unless they were."""
        self._study.enqueue_trial({key: _as_text(value) for key, value in values.items()}, skip_if_exists=True)

    def next_trial(self) -> Trial:
        """The trial that was cut short, or else a new one."""
        states = self._optuna.trial.TrialState
        for begun in self._study.get_trials(states=(states.RUNNING,)):
            if begun.params.keys() == self._distributions.keys():
                return Trial(begun.number, begun.params)
            self._study.tell(begun.number, state=states.FAIL)  # killed before it had all of its values
        seed = derive_seed(self._seed, "sweep", len(self.finished())) % 2**32
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
        asked = self._study.ask(self._distributions)
        return Trial(asked.number, asked.params)

    def tell(self, trial: Trial, score: float | None) -> None:
        """What came of a trial; None = it diverged, which counts as worse than any score."""
        states = self._optuna.trial.TrialState
        self._study.tell(trial.number, score, state=states.PRUNED if score is None else states.COMPLETE)

    def finished(self) -> list[Trial]:
        """In the order in which they were tried."""
        states = self._optuna.trial.TrialState
        trials = self._study.get_trials(states=(states.COMPLETE, states.PRUNED))
        return [Trial(t.number, t.params, t.value if t.state == states.COMPLETE else None) for t in trials]

    def _distribution(self, allowed: Range | Choices) -> Any:
        kinds = self._optuna.distributions
        if isinstance(allowed, Choices):
            return kinds.CategoricalDistribution([_as_text(value) for value in allowed.values])
        whole = isinstance(allowed.low, int) and isinstance(allowed.high, int)
        kind = kinds.IntDistribution if whole else kinds.FloatDistribution
        return kind(allowed.low, allowed.high, log=allowed.log)

    def _refuse_another(self, question: Mapping[str, Any], folder: Path) -> None:
        now = json.loads(json.dumps(question))  # tuples as the lists that they come back as
        before = self._study.user_attrs.get("question")
        if before is None:
            self._study.set_user_attr("question", now)
            return
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            lines = "\n".join(f"  {key}: now {now.get(key)!r}, then {before.get(key)!r}" for key in changed)
            raise ConfigError(
                f"{folder} holds a sweep that was begun otherwise:\n{lines}\nTake another folder (--out)."
            )

    @contextmanager
    def _explaining(self, path: Path) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError  # optuna brings it

        try:
            yield
        except (self._optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path} cannot be used to resume: {reason}. Delete it to begin anew, or take another folder (--out)."
            ) from error


def _as_text(value: Any) -> Any:
    """A list as the text that a configuration reads it from: optuna keeps numbers and text only."""
    return repr(value) if isinstance(value, list | tuple) else value


def _import_optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "incdet sweep searches by optuna, which is not installed. Install incdet with its extra: "
            "pip install 'incdet[sweep]', in a checkout pip install -e '.[sweep]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

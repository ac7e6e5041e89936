"""Hydra in one place: how a command's words are read, expanded, composed and named."""

from __future__ import annotations

import difflib
import itertools
import random
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from math import inf
from pathlib import Path
from typing import NamedTuple, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from stepscale.bench.errors import UsageError
from stepscale.bench.machine.cores import ALL
from stepscale.bench.notes import one_line
from stepscale.bench.records.ranges import LARGEST, refuse_boundless
from stepscale.bench.records.schema import AXES, Config, Task

# learning rates follow the dim: lr: ${divide:0.3,${dim}}
OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)
# and may follow the batch: ${linear:0.1,${batch},100} is 0.1 at batch 100 (Goyal et al. 2017, arXiv 1706.02677), and
# ${root:0.1,${batch},100} grows as its square root (Krizhevsky 2014, arXiv 1404.5997)
OmegaConf.register_new_resolver("linear", lambda rate, batch, base: rate * batch / base, replace=True)
OmegaConf.register_new_resolver("root", lambda rate, batch, base: rate * (batch / base) ** 0.5, replace=True)

CONF = Path(__file__).parent / "conf"
GROUPS = ("optimizer", "model", "data", "timing", "training")
NAMED = ("optimizer", "model", "data")  # groups whose choice is an axis of the tables
BUILD_NOTHING = ("timing", "training")
SETTINGS = ("task", "memory_gib", "timeout_s", "flush_denormal", "label", "world", "timing", "training", "hydra")
NOT_THE_OPTIMIZERS = rf"({'|'.join([*AXES, *SETTINGS])})[.=/@]|[^=]*$"
SIZES = ("dim", "batch", "depth", "data.dim")
WHOLE = dict.fromkeys(SIZES, (1, LARGEST)) | {"seed": (0, 2**53)}  # least and most
PLAIN = re.compile(r"([a-z_][a-z0-9_.]*)=(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|true|false|null)", re.ASCII)
NO_CHOICE = re.compile(rf"({'|'.join(GROUPS)})=(-?\d[\d.e+-]*|true|false|null|)")
CHOICE = re.compile(rf"({'|'.join(GROUPS)})=[\w/-]+")  # of a group's file, which Hydra applies before any value
Words = list[str]


class CellConfig(NamedTuple):
    """A composed cell."""

    config: Config  # resolved
    names: dict[str, str]  # of optimizer, model and data, as tables show them
    variables: dict[str, str]  # hydra.job.env_set: the environment of the cell's process
    composed: DictConfig  # with its interpolations

    def at(self, dim: int) -> Config:
        """Return the cell's configuration at another dim.

        Raises:
            UsageError: it has none there.
        """
        config = deepcopy(self.composed)
        config.dim = dim
        return _resolved(config)


class _Loader(NamedTuple):
    """Hydra's loader as a ``glob`` asks it, which would else not see the user's folder."""

    loader: ConfigLoader
    places: Words  # where else to look

    def get_group_options(self, group: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return self.loader.get_group_options(group, results_filter, "config", self.places)


class _Composed(NamedTuple):
    """What Hydra makes of some words."""

    config: DictConfig  # with its interpolations, and without Hydra's own part
    choices: dict[str, str]
    variables: dict[str, str]


def compose_cell(words: Words) -> CellConfig:
    """Compose one cell, as Hydra would; what is the same for other cells is composed once.

    Hydra's own composition takes tens of milliseconds. Words that set a number are applied to a copy, as Hydra applies
    them itself, after everything else has been composed.

    Raises:
        UsageError: Hydra cannot compose these words, or a value is out of its range.
    """
    plain = _plain(words)
    rest = tuple(word for word in words if word not in {match[0] for match in plain})
    composed = _composed(rest)
    config = deepcopy(composed.config)
    try:
        for match in plain:
            OmegaConf.update(config, match[1], _value(match[2]), force_add=False)
    except (OmegaConfBaseException, AttributeError):  # Hydra's own words for it are better known
        composed = _composed(tuple(words))
        config = deepcopy(composed.config)
    return cell_of(config, composed.choices, words, composed.variables)


def _plain(words: Words) -> list[re.Match[str]]:
    """Return the words that set a number and may be applied last: no other word is of the same part of the tree."""
    found = [match for word in words if (match := PLAIN.fullmatch(word))]
    others = [
        word.lstrip("+~").split("=")[0] for word in words if not (PLAIN.fullmatch(word) or CHOICE.fullmatch(word))
    ]
    if any(word.lstrip("+~").startswith("hydra") and "${" in word for word in words):
        return []  # of Hydra's own part, which is resolved at once
    return [match for match in found if not _touches(match[1], others)]


def _touches(key: str, others: list[str]) -> bool:
    """Whether a key is Hydra's, a group's name, or another word's key, or lies within it or around it."""
    if key in GROUPS or key.split(".")[0] == "hydra":
        return True
    return any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in others)


def cell_of(config: DictConfig, choices: dict[str, str], words: Words, variables: dict[str, str]) -> CellConfig:
    """Check and resolve a composed configuration, and name what it chose.

    Raises:
        UsageError: a value is missing or out of its range; the message names it and what was expected.
    """
    check_keys(config, choices)
    resolved = _resolved(config)
    return CellConfig(resolved, _names(resolved, choices, _at_work(words, config)), variables, config)


def _resolved(config: DictConfig) -> Config:
    try:
        check_numbers(config)  # first: learning rates are computed from the dim
        found = cast(Config, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        refuse_boundless(found)
    except MissingMandatoryValue as error:
        raise UsageError(f"{error.full_key} has no value: set {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise UsageError(f"{error.full_key}: {one_line(error)}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return found


def multirun(job: Callable[[DictConfig], object], grid: str, words: Words) -> None:
    """Run a job for each value of ``grid``, as ``part=0,1``, by the launcher that words of Hydra's name.

    Raises:
        UsageError: Hydra cannot compose these words.
        Exception: whatever the launcher raises.
    """
    quiet = ["hydra/hydra_logging=none", "hydra/job_logging=none", "hydra.output_subdir=null"]
    with _sentences(), _hydra():
        compose(None, words, return_hydra_config=True)
    with _hydra() as initialized:
        assert initialized.hydra is not None
        initialized.hydra.multirun(None, job, [f"+{grid}", *quiet, *words], with_log_configuration=False)


def expand(words: Words) -> list[Words]:
    """Return each point of a grid of Hydra's overrides, ``dim=64,256 data=photos``; ``shuffle`` in the same order."""
    with _sentences(), _hydra() as initialized:
        places = [word for word in words if word.startswith("hydra.searchpath=")]
        loader = cast(ConfigLoader, _Loader(initialized.config_loader(), places))
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
        with _seeded(repr(words)):
            choices = [
                [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
                if o.is_sweep_override()
                else [word]
                for word, o in zip(words, parsed, strict=True)
            ]
    return [list(point) for point in itertools.product(*choices)]


def label_of(group: str, choice: str, words: Words) -> str:
    """Return the file chosen for a group, with what the command line changed in it: ``kfac[update.lr=0.1]``.

    Where the command line names what is built, ``model._target_=own.NSF``, its own name stands for the file's, and what
    is left out of the file is no change of it. What an optimizer's file takes from elsewhere, as ``frame``, is a change
    of it too: other cells are no other seeds.
    """
    changes = [word.lstrip("+~") for word in words]
    if named := [change.split("=")[1] for change in changes if change.startswith(f"{group}._target_=")]:
        choice = named[-1].split(".")[-1]
        changes = [word.lstrip("+") for word in words if not word.lstrip("+").startswith(("~", f"{group}._target_="))]
    found = [change.removeprefix(f"{group}.") for change in changes if change.startswith(f"{group}.")]
    if group == "optimizer":
        found += [change for change in changes if not re.match(NOT_THE_OPTIMIZERS, change)]
    found = [re.sub(r"=['\"]?\$\{([^{}]*)\}['\"]?$", r"=\1", change) for change in found]  # hidden=dim of hidden=${dim}
    return choice + (f"[{','.join(sorted(found))}]" if found else "")


def merged(words: Words, others: Words) -> Words:
    """Join two lists of overrides; where both set the same key, the second does."""
    keys = {word.split("=")[0] for word in others}
    return [*(word for word in words if word.split("=")[0] not in keys), *others]


def searchable(words: Words) -> Words:
    """Turn ``--config-dir mine`` into the override that says the same.

    Raises:
        UsageError: there is no such folder.
    """
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for flag in {"--config-dir", "-cd"} & set(words[:-1]):
        place = words.index(flag)
        if not Path(words[place + 1]).is_dir():
            raise UsageError(f"there is no folder {words[place + 1]!r}; {flag} names the one that holds your own files")
        words[place : place + 2] = [f"hydra.searchpath=[{quoted(f'file://{Path(words[place + 1]).resolve()}')}]"]
    return words


def quoted(text: str) -> str:
    """Write a text as Hydra's grammar quotes it: a backslash is one, but before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + (match[2] and f"\\{match[2]}"), text) + "'"


def value_of(words: Words, key: str) -> str | None:
    """Return what the words set a key to, None where they do not; several values as they were typed."""
    chosen = [word for word in words if word.startswith(f"{key}=")]
    if not chosen:
        return None
    with _sentences():
        [found] = OverridesParser.create().parse_overrides(chosen[-1:])
    return chosen[-1].removeprefix(f"{key}=") if found.is_sweep_override() else str(found.value())


def read_yaml(path: Path) -> object:
    """Return the content of a YAML file.

    Raises:
        UsageError: it is none.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}") from error


def check_numbers(config: DictConfig) -> None:
    """See that whole numbers are whole and limits positive.

    Raises:
        UsageError: one is not.
    """
    for name, (least, most) in WHOLE.items():
        value = OmegaConf.select(config, name)
        if not _whole(value, least):
            raise UsageError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if value > most:
            raise UsageError(f"{name} must be at most {most}, got {value}")
    if config.world != 1:
        raise UsageError(
            f"world={config.world} is unmeasured: a time across ranks needs a quiet core or a GPU for each, and "
            "stepscale times one process; `stepscale world` counts the FLOPs, collectives and bytes of each rank"
        )
    if config.threads not in (None, ALL) and not _whole(config.threads, 1):
        raise UsageError(f"threads must be null, {ALL} or a whole number of at least 1, got {config.threads!r}")
    for name in ("memory_gib", "timeout_s"):
        value = config[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf):
            raise UsageError(f"{name} must be null or a positive number, got {value!r}")
    if not isinstance(config.flush_denormal, bool):
        raise UsageError(f"flush_denormal must be true or false, got {config.flush_denormal!r}")


def check_keys(config: DictConfig, choices: dict[str, str]) -> None:
    """See that every key has a meaning: it is one of ours, or others refer to it.

    What builds optimizer, model and data is called with keys of its own, and says itself which it does not know.

    Raises:
        UsageError: one has none; the message says what may have been meant.
    """
    known = known_keys()
    lacking = [group for group in GROUPS if group not in choices or not isinstance(config.get(group), DictConfig)]
    if lacking:
        raise UsageError(f"the configuration has no {', '.join(lacking)}: a cell needs one of the group's files")
    found = [*map(str, config), *(f"{group}.{key!s}" for group in BUILD_NOTHING for key in config[group])]
    for key in found:
        if key not in known and f"${{{key}}}" not in OmegaConf.to_yaml(config):
            raise UsageError(f"there is no key {key!r}; {_meant(key, known)}")


@cache
def known_keys() -> Words:
    """Return the keys there are: those of a cell, and of the groups that build nothing."""
    own = [str(key) for key in OmegaConf.load(CONF / "config.yaml") if key not in ("defaults", "hydra")]
    read = {group: OmegaConf.load(CONF / group / "default.yaml") for group in BUILD_NOTHING}
    return [*own, *GROUPS, *(f"{group}.{key!s}" for group, keys in read.items() for key in keys)]


@cache
def _composed(words: tuple[str, ...]) -> _Composed:
    """Compose words by Hydra; of one configuration that is never changed, only copied."""
    if wrong := [word for word in words if NO_CHOICE.fullmatch(word)]:
        files = sorted(path.stem for path in (CONF / wrong[0].split("=")[0]).glob("*.yaml"))
        raise UsageError(f"{wrong[0]} names no file; there are {', '.join(files)}")
    with _sentences(words), _hydra():
        config = compose("config", list(words), return_hydra_config=True)
    choices, variables = dict(config.hydra.runtime.choices), dict(config.hydra.job.env_set)
    with open_dict(config):
        del config["hydra"]
    return _Composed(config, choices, {key: str(value) for key, value in variables.items()})


@contextmanager
def _hydra() -> Iterator[GlobalHydra]:
    """Have Hydra know our configuration while the block runs, whatever it knew before."""
    with initialize_config_dir(str(CONF), job_name="stepscale", version_base="1.3"):
        yield GlobalHydra.instance()


@contextmanager
def _sentences(words: Collection[str] = ()) -> Iterator[None]:
    """Turn what Hydra cannot do with a user's words into a sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UsageError(_sentence(error, words)) from error


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """Draw from Python's generator by a seed, and leave it as it was: a plan is the same each time it is made."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _names(config: Config, choices: dict[str, str], words: Words) -> dict[str, str]:
    """Name optimizer, model and data as tables show them: by their files, with what the command line changed."""
    for group in NAMED:
        if not isinstance(config[group], dict) or not isinstance(config[group].get("_target_"), str):
            raise UsageError(f"{group}={choices[group]} has no _target_: its file names by it what is to be built")
    names = {group: label_of(group, choices[group], words) for group in NAMED}
    names["optimizer"] = str(config["label"] or names["optimizer"])
    if config["task"] == Task.TIME and (mode := config["timing"].get("compile")):
        names["optimizer"] += f"[compile={mode}]"
    return names


def _at_work(words: Words, config: DictConfig) -> Words:
    """Leave out words that change nothing of a cell, as ``natural_lr`` where no direction takes it."""
    keys = {word: word.lstrip("+~").split("=")[0] for word in words}
    shared = {word for word, key in keys.items() if key.isidentifier() and not re.match(NOT_THE_OPTIMIZERS, f"{key}=")}
    said = OmegaConf.to_yaml(config) if shared else ""  # which `check_keys` asks, too
    return [word for word in words if word not in shared or f"${{{keys[word]}}}" in said]


def _value(word: str) -> object:
    """Return the number, truth or null that a word says."""
    if word in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[word]
    return int(word) if re.fullmatch(r"-?\d+", word) else float(word)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _meant(key: str, known: Words) -> str:
    """Say which of the known keys may have been meant by another: one of the same last word, or that is spelt alike."""
    others = [other for other in known if other != key]
    near = [other for other in others if other.split(".")[-1] == key] or difflib.get_close_matches(key, others, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "stepscale --cfg job shows the keys there are"


def _dotted_keys(words: Collection[str]) -> Words:
    """Return every key that there is with the groups' files that words choose."""
    chosen = tuple(word for word in words if word.split("=")[0] in (*GROUPS, "hydra.searchpath"))
    found, waiting = list[str](), [("", OmegaConf.to_container(_composed(chosen).config))]
    while waiting:
        place, part = waiting.pop()
        for key, value in part.items() if isinstance(part, dict) else ():
            found.append(f"{place}{key!s}")
            waiting.append((f"{place}{key!s}.", value))
    return found


def _sentence(error: Exception, words: Collection[str]) -> str:
    """Say in a sentence what Hydra could not do with a user's words, and what may have been meant."""
    first = " ".join(str(error).split("\n\n")[0].split("\nSee https")[0].split())
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read: {first}"
    if several := re.match(r"Ambiguous value for argument '([^']*)'", first):
        return f"{several[1]} has several values, and this is one cell: `stepscale -m {several[1]}` measures a grid"
    if there := re.match(r"Could not append to config. An item is already at '([^']+)'", first):
        return f"there is a key {there[1]!r} already; leave out the + before it"
    if unknown := re.match(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", first):
        return f"there is no key {unknown[1]!r} to change; {_meant(unknown[1], _dotted_keys(words))}"
    if isinstance(error, MissingConfigException) and error.options:
        wanted = str(error.missing_cfg_file).split("/")[-1]
        deeper = [
            path.parent.name
            for path in sorted((CONF / str(error.missing_cfg_file).split("/")[0]).glob(f"*/{wanted}.yaml"))
        ]
        near = [f"{deeper[0]}/{wanted}"] if deeper else difflib.get_close_matches(wanted, error.options, n=1)
        choices = f"did you mean {near[0]}?" if near else f"there are {', '.join(error.options)}"
        return f"{first}; {choices}"
    return first

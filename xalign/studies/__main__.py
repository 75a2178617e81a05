"""An analysis of finished runs; ``python -m xalign study NAME RUN [RUN ...] [KEY=VALUE ...]``. No torch."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xalign.compose import keys_of, offered, package_folder
from xalign.config import ConfigError, build
from xalign.report.runs import load_runs
from xalign.studies.base import Study, found, present
from xalign.terminal import LineParser, reading
from xalign.values import among

ABOUT = "The papers' analyses of finished runs: a table, a picture and the numbers beside it."


def make_study(name: str, settings: dict[str, Any] | None = None) -> Study:
    """The study that conf/study/NAME.yaml describes, with some keys set.

    Raises:
        ConfigError: there is no such study or key, or a value is out of range.
    """
    from omegaconf import OmegaConf

    names = [n for n in offered("study") if n != "none"]
    if name not in names:
        raise ConfigError(f"study={name}: no such study{among(name, names, 'studies')}")
    values = OmegaConf.to_container(OmegaConf.load(package_folder("conf") / "study" / f"{name}.yaml"))
    return build({**values, **(settings or {})}, "study")  # type: ignore[dict-item]


def settings_of(texts: Sequence[str], name: str) -> dict[str, Any]:
    """``KEY=VALUE`` (or ``study.KEY=VALUE``) as a mapping, values read as Hydra reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    values: dict[str, Any] = {}
    known = [key.removeprefix("study.") for key in keys_of("study", name)]
    for text in texts:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as e:
            raise ConfigError(f"{text}: cannot be read ({str(e).splitlines()[0]}); write key=value") from None
        key = override.key_or_group.removeprefix("study.")
        if key not in known:
            raise ConfigError(f"{key}: is no key of study={name}{among(key, known) if known else '; it has none'}")
        values[key] = override.value()
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    names = "\n".join(f"  {name:<16} {text}" for name, text in offered("study").items() if name != "none")
    parser = LineParser(prog="python -m xalign study", description=ABOUT, epilog=f"studies:\n{names}\n\nthe keys of each stand in "
                        f"{package_folder('conf') / 'study'}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="which study, see below")
    parser.add_argument("runs", nargs="+", metavar="RUN|KEY=VALUE", help="run folders, folders that hold runs, patterns; keys of the study")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where tables and pictures are written (default: study/NAME)")

    def work() -> None:
        args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        make_study(args.name)  # the name first
        given = [a for a in args.runs if "=" in a and not Path(a).exists()]
        study = make_study(args.name, settings_of(given, args.name))
        paths = [a for a in args.runs if a not in given]
        present(found(study, load_runs(paths or ["runs"])), args.out or Path("study") / args.name)

    return reading(work)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0
"""Paths, pinned versions and the environment every child process gets."""

import os
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = CHECKOUT / "scripts"
TOOLS = CHECKOUT / "tools"
CACHE = Path(os.environ.get("KEVENT_CACHE") or Path.home() / ".cache/kevent").absolute()

with open(SCRIPTS / "versions.toml", "rb") as _f:
    PINS = tomllib.load(_f)

VENV = CACHE / "venv"
#: What was built because no package has it.
INSTALLED = CACHE / "tools"
CARGO_TARGET = CACHE / "target"

#: One author and one date for everything that is generated, so that the same
#: input always gives the same git objects.
IDENTITY = {"name": "kevent", "email": "kevent@localhost", "date": "1767225600 +0000"}


def cache(*parts):
    """A folder inside the cache, made if it is missing."""
    path = CACHE.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def log(name):
    """The log file of one step."""
    return cache("log") / f"{name}.log"


def jobs():
    return len(os.sched_getaffinity(0))


def environment(**extra):
    """The environment for child processes: what they write goes to the cache."""
    env = dict(os.environ)
    env.update(
        LC_ALL="C.UTF-8",
        TMPDIR=str(cache("tmp")),
        PIP_CACHE_DIR=str(CACHE / "pip"),
        CARGO_TARGET_DIR=str(CARGO_TARGET),
        CCACHE_DIR=str(CACHE / "ccache"),
        PYTHONDONTWRITEBYTECODE="1",
    )
    env.update({k: str(v) for k, v in extra.items()})
    return env


def git_environment():
    """git without the user's configuration, and with a fixed identity."""
    env = environment(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1",
                      GIT_TERMINAL_PROMPT="0")
    for role in ("AUTHOR", "COMMITTER"):
        for field, value in IDENTITY.items():
            env[f"GIT_{role}_{field.upper()}"] = value
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        env.pop(name, None)
    return env

# SPDX-License-Identifier: GPL-2.0
"""Litmus tests: herd7, what it says of each, and that no barrier is without one.

X-A-B.litmus is about the barriers A and B of the source X, and never comes to
what its last line says. X-A-B-without-A.litmus is its twin, and sometimes does.
"""

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kev import config, setup, tree, ui

PIN = config.PINS["herd7"]
#: Seconds for one test; they take a few hundredths.
LIMIT = 120
KERNEL = "rust/Documentation/litmus-tests/kevent"
#: Folder -> the models that its tests are run with: the arguments of herd7. Twins are
#: run with the first alone; the others are stricter.
MODELS = {
    KERNEL: None,       # the kernel tree's own, see kernel_model()
    "tools/litmus/c11": [["-model", "c11_partialSC.cat"], ["-model", "rc11.cat"]],
    "tools/litmus/aarch64": [["-model", "aarch64.cat"]],
    "tools/litmus/x86": [["-model", "x86tso.cat"]],
}
KERNEL_MODEL = [f"linux-kernel.{x}" for x in ("bell", "cat", "cfg", "def")] + ["lock.cat"]
#: What herd7 flags though it is no mistake in a test.
HARMLESS = {"Assuming-common-inner-shareable-domain"}
#: Leaves out the other programs of herdtools7, which are 230 MB.
UNPACK = ('set -o pipefail; dpkg-deb --fsys-tarfile "$1" | '
          'tar -x -C "$2" --exclude "./usr/bin/[!h]*"')


class Missing(ui.Failure):
    """There is no herd7 to be had here."""


# ---- herd7 -------------------------------------------------------------------

def version(command):
    return setup.version_of(command, "-version")


def usable(command):
    return command and setup.new_enough(version(command), "herd7")


def unpacked(top):
    """The command of the herd7 in `top`, with the C library beside it; None if there is none."""
    loader = next(top.glob("usr/lib/*/ld-linux*"), None)
    return loader and [loader, "--library-path", loader.parent, top / "usr/bin/herd7",
                       "-set-libdir", top / "usr/share/herdtools7/herd"]


def fetch(top):
    """Put Debian's herd7 and its libraries in `top`, beside the system's packages."""
    apt = tree.Apt("herd7", PIN["suites"])
    log = apt.log
    where = f"Debian {' '.join(PIN['suites'])}"
    do = f"install herdtools7 {config.PINS['minimum']['herd7']} or newer"
    if not apt.usable() or not apt.update():
        raise Missing("no herd7", f"no package lists of {where}", do, log)
    folder = apt.download(*PIN["packages"], check=False)
    if not folder:
        raise Missing("no herd7", f"{where} does not have it, or cannot be reached", do, log)
    new = tree.fresh(folder / "unpacked")
    for deb in sorted(folder.glob("*.deb")):
        if wanted := PIN["sha256"].get(deb.name):
            tree.expect_sha256(deb, wanted)
        else:
            ui.say(f"  note: not the pinned package, but one that {where} signs: {deb.name}")
        ui.run(["bash", "-c", UNPACK, "unpack", deb, new], f"herd7: unpacking {deb.name}", log,
               append=True)
    if not usable(unpacked(new)):
        raise Missing("no herd7", f"that of {where} does not run here", do, log)
    tree.put(new, top)
    shutil.rmtree(folder)


@functools.cache
def herd7():
    """The command that runs herd7: the system's if it is new enough, else Debian's in the cache."""
    found, top = shutil.which("herd7"), config.INSTALLED / "herd7"
    command = [found] if found else None
    if not usable(command):
        command = unpacked(top)
        if not usable(command):
            fetch(top)
            command = unpacked(top)
    setup.table([("herd7", version(command), found if command == [found] else top)])
    return [str(x) for x in command]


# ---- running -----------------------------------------------------------------

def kernel_model(base):
    """Extract the kernel's memory model from the tree; gives the arguments of herd7."""
    folder = config.cache("litmus")
    for name in KERNEL_MODEL:
        (folder / name).write_text(
            tree.git(base.repo, "show", f"base:tools/memory-model/{name}"))
    return ["-I", str(folder), "-conf", str(folder / "linux-kernel.cfg")]


def observation(text):
    """(what herd7 observed, or None; what it objects to) from its output."""
    found = re.search(r"^Observation \S+ (\w+)", text, re.M)
    flags = set(re.findall(r"^Flag (.*)$", text, re.M)) - HARMLESS
    return (found and found.group(1),
            re.findall(r"^Warning: .*$", text, re.M) + [f"flag {x}" for x in sorted(flags)])


def run(herd, models, test):
    """Run a test; gives the problems."""
    problems = []
    for model in models[:1] if test.twin else models:
        try:
            done = subprocess.run([*herd, *model, test.path], capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            problems.append(f"took more than {LIMIT} s")
            continue
        text = done.stdout + done.stderr
        with open(config.log("litmus"), "a") as log:
            log.write(f"$ {' '.join([*herd, *model, str(test.path)])}\n{text}\n")
        found, objections = observation(text)
        if found != test.expected or objections:
            problems += [f"{found or 'nothing'}, not {test.expected} ({' '.join(model)})",
                         *objections]
    return problems


# ---- the files ---------------------------------------------------------------

@dataclass(frozen=True)
class Test:
    """A litmus test, or the twin of one."""
    path: Path
    text: str

    @property
    def name(self):
        return self.path.stem

    @property
    def twin(self):
        return "-without-" in self.name

    @property
    def base(self):
        return self.name.split("-without-")[0]

    @property
    def source(self):
        return self.name.split("-")[0]

    @property
    def letters(self):
        return {x for x in self.base.split("-") if re.fullmatch("[A-Z]", x)}

    @property
    def expected(self):
        return "Sometimes" if self.twin else "Never"

    @property
    def condition(self):
        """The last line: what is looked for."""
        return self.text[self.text.find("\nexists"):].split()


def tests(folder):
    """The tests in a folder."""
    return [Test(p, p.read_text()) for p in sorted(folder.glob("*.litmus"))]


def inconsistent(found):
    """What is wrong with the files themselves, whatever herd7 says."""
    problems = [] if found else ["there is none"]
    by_name = {test.name: test for test in found}
    for test in found:
        says = re.search(r"^ \* Result: (\w+)", test.text, re.M)
        if test.text.split("\n")[0].split()[-1] != test.name:
            problems.append(f"{test.name}: its first line has another name")
        if not says or says.group(1) != test.expected:
            problems.append(f"{test.name}: its comment does not say Result: {test.expected}")
        if not test.twin:
            if not any(x.twin and x.base == test.name for x in found):
                problems.append(f"{test.name}: has no twin {test.name}-without-...")
        elif test.base not in by_name:
            problems.append(f"{test.name}: there is no {test.base}")
        elif by_name[test.base].condition != test.condition:
            problems.append(f"{test.name}: looks for something else than {test.base}")
    return problems


def lettered(text):
    """The letters that the diagrams at the top of a Rust file have, as in "(A) store word"."""
    diagrams = re.findall(r"^//! ```text\n((?://!.*\n)*?)//! ```$", text, re.M)
    return set(re.findall(r"\(([A-Z])\)", "".join(diagrams)))


def untested(checkout, found):
    """The letters of the kernel side that have no test, and the tests that are about nothing."""
    sources = {p.stem: p for suffix in ("rs", "c")
               for p in sorted((checkout / "rust").rglob(f"*.{suffix}"))}
    problems = [f"{test.name}: there is no {test.source}.rs, nor .c"
                for test in found if test.source not in sources]
    for name, path in sources.items():
        have = set().union(*(x.letters for x in found if x.source == name and not x.twin))
        letters = lettered(path.read_text())
        problems += [f"{path.relative_to(checkout)}: no litmus test is about {x}"
                     for x in sorted(letters - have)]
        problems += [f"{name}: a litmus test is about {x}, which {path.relative_to(checkout)} "
                     "does not have" for x in sorted(have - letters)]
    return problems

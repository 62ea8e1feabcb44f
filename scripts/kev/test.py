# SPDX-License-Identifier: GPL-2.0
"""Run all tests in named steps; the last line printed is the count."""

import functools
import re
import shlex
import shutil
import sys
import tempfile
import time
import unittest
from pathlib import Path

from kev import boot, build, config, demo, series, setup, tree, ui

TOOLS = config.CHECKOUT / "tools"
#: Seconds for one cargo test command, for one selftest program in the guest, and
#: for the demo.
HOST_LIMIT = 1200
PROGRAM_LIMIT = 120
DEMO_LIMIT = 300
SHORT_DEMO = ["--connections", "50", "--requests", "20"]


class Tally:
    """Counts of one step."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def passes(self, count=1):
        self.passed += count

    def fails(self, what, count=1):
        self.failed += count
        ui.say(what if isinstance(what, ui.Failure) else f"  FAIL  {what}")

    def judge(self, name, problems):
        """One test: failed if there are problems."""
        if not problems:
            ui.say(f"  ok    {name}")
            return self.passes()
        self.fails("\n        ".join([name, *problems[:20]]))

    def counts(self):
        text = f"{self.passed} passed, {self.failed} failed"
        return text + (f", {self.skipped} skipped" if self.skipped else "")


@functools.cache
def outcome(function, *args):
    """The result of a costly step, or its Failure; several test steps may need it."""
    try:
        return function(*args), None
    except ui.Failure as failure:
        return None, failure


def need(function, *args):
    value, failure = outcome(function, *args)
    if failure:
        raise failure
    return value


# ---- the steps ---------------------------------------------------------------

def step_setup(tally, options):
    """packages, tool chain, virtme-ng"""
    setup.everything()
    tally.passes()


def step_scripts(tally, options):
    """unit tests of these scripts"""
    setup.packages("tree")
    suite = unittest.defaultTestLoader.discover(str(Path(__file__).parent / "tests"),
                                                top_level_dir=str(config.SCRIPTS))
    with open(config.log("scripts"), "w") as log:
        result = unittest.TextTestRunner(log, verbosity=2).run(suite)
    bad = result.failures + result.errors
    for test, trace in bad:
        tally.fails(f"{test}: {trace.strip().splitlines()[-1]}")
    tally.skipped += len(result.skipped)
    tally.passes(result.testsRun - len(bad) - len(result.skipped))


def cargo_test(tally, title, arguments, **extra):
    tools, log = setup.toolchain(), config.log(title.replace(" ", "-"))
    command = [tools.rust_tool("cargo"), "test", "--locked", *arguments]
    status = ui.run(command, f"host: {title}", log, cwd=TOOLS, check=False, limit=HOST_LIMIT,
                    env=tools.cargo_environment(**extra), counts=r"^test .*\.\.\. ", unit="tests")
    text = log.read_text(errors="replace")
    results = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored",
                         text, re.M)
    passed, failed, ignored = (sum(int(x[i]) for x in results) for i in range(3))
    tally.passes(passed)
    tally.skipped += ignored
    for name in re.findall(r"^test (.*) \.\.\. FAILED", text, re.M):
        ui.say(f"  FAIL  {name}")
    tally.failed += failed
    if (status and not failed) or not passed:
        tally.fails(ui.Failure(title, ui.error_lines(log), f"cd {TOOLS} && "
                               + shlex.join(["cargo", *command[1:]]), log))


def step_host(tally, options):
    """cargo tests, the ring under loom, formatting"""
    if not (TOOLS / "Cargo.toml").exists():
        raise ui.Failure("there are no host tests", f"{TOOLS}/Cargo.toml is missing")
    cargo_test(tally, "cargo test", [])
    cargo_test(tally, "loom", ["--release", "-p", "ring-tests"], RUSTFLAGS="--cfg loom",
               CARGO_TARGET_DIR=config.CARGO_TARGET / "loom")
    tools, base = setup.toolchain(), need(tree.get, options.tree, series.applies)
    style = config.cache("tmp") / ".rustfmt.toml"
    style.write_text(tree.git(base.repo, "show", "base:.rustfmt.toml"))
    for folder, arguments in (("rust", ["--config-path", style]), ("tools", ["--edition", "2021"])):
        files = [config.CHECKOUT / n for n in series.project_files(config.CHECKOUT, folder)
                 if n.endswith(".rs")]
        log = config.log(f"rustfmt-{folder}")
        log.write_text(ui.output([tools.rust_tool("rustfmt"), "--check", *arguments, *files],
                                 check=False) if files else "")
        tally.judge(f"rustfmt of {folder}/", sorted(set(
            re.findall(r"^Diff in (.*?)[: ]", log.read_text(), re.M)
        )) + ([] if files else [f"no Rust files in {folder}/"]))


def step_series(tally, options):
    """patches apply, equal rust/ and selftests/, regenerate the same; checkpatch; drift is found"""
    base = need(tree.get, options.tree, series.applies)
    parts = series.check(base)
    for name, problems in parts:
        tally.judge(name, problems)
    if not parts[0][1]:
        tally.judge("a changed character is found", drift_test(base))


def drift_test(base):
    """Change one character in a copy of the checkout; the check must name the file."""
    with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
        copy = Path(folder)
        for name in series.project_files(config.CHECKOUT, "rust", "selftests", "patches"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(config.CHECKOUT / name, copy / name)
        tree.git(copy, "init", "-q")
        victim = next(n for n in series.project_files(copy, "rust"))
        data = bytearray((copy / victim).read_bytes())
        data[-2] ^= 1
        (copy / victim).write_bytes(data)
        found = series.drift(copy, base.repo, base.commit, series.applied(base, copy))
    return [] if any(line.startswith(f"{victim}: differs") and series.REGEN in line
                     for line in found) else [f"a change in {victim} was not reported"]


def step_build(tally, options):
    """the kernel with the series"""
    kernel = need(build.patched, options.tree)
    ui.say(f"  {kernel.release}: {kernel.image}")
    tally.passes()


def tap(text, status):
    """(passed, skipped, failures) of a program that printed TAP and exited with `status`."""
    lines = re.findall(r"^(ok|not ok)\b *\d*(.*)$", text, re.M)
    failures = [f"not ok {name.strip()}" for verdict, name in lines
                if verdict == "not ok" and "# SKIP" not in name]
    skipped = sum("# SKIP" in name for _, name in lines)
    plan = re.search(r"^1\.\.(\d+)( # SKIP)?", text, re.M)
    if plan and plan.group(2):
        return 0, 1, []
    if not plan:
        failures.append("no TAP plan")
    elif int(plan.group(1)) != len(lines):
        failures.append(f"planned {plan.group(1)} tests, {len(lines)} reported")
    if not status:
        failures.append("did not run, or did not end")
    elif status == "124":
        failures.append(f"took more than {PROGRAM_LIMIT} s")
    elif status not in ("0", "4") and not failures:
        failures.append(f"exit status {status}")
    return len(lines) - skipped - sum(f.startswith("not ok") for f in failures), skipped, failures


def step_selftests(tally, options):
    """the kselftests in a guest"""
    kernel = need(build.patched, options.tree)
    programs = build.selftests(kernel)
    if not programs:
        raise ui.Failure("there are no selftests", "TEST_GEN_PROGS is empty",
                         "see selftests/Makefile")
    commands = "".join(
        f"echo {p.name}\n(cd {p.parent} && exec timeout -k 5 {PROGRAM_LIMIT} ./{p.name})"
        f" >{p.name}.tap 2>&1\necho $? >{p.name}.status\n" for p in programs)
    result = boot.run(kernel, "selftests", commands, PROGRAM_LIMIT * len(programs),
                      icount=options.icount, title="selftests: boot and run",
                      state=lambda folder: (boot.read(folder / "output").split() or [""])[-1])
    for program in programs:
        output = result.folder / f"{program.name}.tap"
        passed, skipped, failures = tap(
            boot.read(output), boot.read(result.folder / f"{program.name}.status").strip())
        if skipped and not passed and not failures:
            # As on a kernel without kevent; this one is meant to have it.
            failures.append("skipped all of its tests")
        ui.say(f"  {'FAIL' if failures else 'ok':5} {program.name}: {passed} passed"
               + (f", {skipped} skipped" if skipped else ""))
        tally.passes(passed)
        tally.skipped += skipped
        for failure in failures:
            tally.fails(f"{program.name}: {failure} ({output})")
    clean_log(tally, result)


def clean_log(tally, result):
    tally.judge("kernel log is clean",
                result.problems and [*result.problems, f"see {result.folder}/dmesg and console"])


def step_demo(tally, options):
    """the demo in a guest: no event lost, clean log"""
    kernel = need(build.patched, options.tree)
    result, (events, calls, lost) = demo.run(kernel, SHORT_DEMO, options.icount, DEMO_LIMIT)
    ui.say(f"  ok    {events} events, {calls} collecting system calls, {lost} lost")
    tally.passes()
    clean_log(tally, result)


STEPS = {name.removeprefix("step_"): function for name, function in list(globals().items())
         if name.startswith("step_")}


def command(options):
    """Run the steps that were named, or all; gives the exit status."""
    if options.list:
        for name, function in STEPS.items():
            ui.say(f"{name:10} {function.__doc__}")
        return 0
    unknown = [n for n in options.steps if n not in STEPS]
    if unknown:
        raise ui.Failure(f"no step is called {unknown[0]}", "", "scripts/test --list")
    rows, total = [], Tally()
    for name in options.steps or STEPS:
        ui.say(f"\n== {name}: {STEPS[name].__doc__}")
        tally, start = Tally(), time.monotonic()
        try:
            STEPS[name](tally, options)
        except ui.Failure as failure:
            tally.fails(failure)
        except Exception as error:          # a mistake in the scripts fails one step only
            tally.fails(f"{name}: {type(error).__name__}: {error}")
            sys.excepthook(*sys.exc_info())
        if not tally.passed + tally.failed + tally.skipped:
            tally.fails(f"{name}: no test ran")
        rows.append((name, tally, ui.duration(time.monotonic() - start)))
        total.passed += tally.passed
        total.failed += tally.failed
        total.skipped += tally.skipped
    ui.say()
    for name, tally, elapsed in rows:
        ui.say(f"{'FAIL' if tally.failed else 'ok':5} {name:10} {elapsed:>7}  {tally.counts()}")
    ui.say(total.counts())
    return 1 if total.failed else 0

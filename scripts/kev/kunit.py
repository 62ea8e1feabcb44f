# SPDX-License-Identifier: GPL-2.0
"""The unit tests of the kernel code, run by the kernel's own kunit.py.

The kernel is a program of the host (ARCH=um): it needs no guest and starts in a
second. kunit.py configures it and runs it; the building in between is done as for the
other kernels, so that progress and errors look the same.
"""

import json
import re

from kev import build, config, debug, dmesg, series, setup, ui

KUNIT = "tools/testing/kunit/kunit.py"
#: What is tested, a file of the kernel tree, and the kernel that it is tested in.
TESTS, KERNEL = "fs/kevent/.kunitconfig", config.SCRIPTS / "kunit.config"
#: Seconds for all tests.
LIMIT = 600
#: Two processors need seccomp, which not every host allows. The kernel says so then.
TWO_PROCESSORS = ("ncpus=2", "seccomp=auto")
NOT_TWO = "SMP is not supported"
#: The aid that says that it is on.
AIDS = ("KASAN",)
#: A suite, in a source file.
SUITE = re.compile(r"^\s*#\[(?:\w+::)*kunit_tests\((\w+)\)\]", re.M)


#: What an example in the documentation of the tree prints, from its place to its verdict. Only
#: examples of files of the series count: others are not in order with all aids on.
EXAMPLE = re.compile(r"^ *# (rust_doctest_kernel_\w+)\.location: .*?^ *(?:not )?ok \d+ \1\n",
                     re.M | re.S)


def is_ours(test, checkout=config.CHECKOUT):
    """Is this test of the series, not an example in the documentation of another file?"""
    found = re.fullmatch(r"rust_doctest_kernel_(\w+)_rs_\d+", test)
    return not found or found.group(1) in (
        name.removeprefix("rust/kernel/").removesuffix(".rs").replace("/", "_")
        for name in series.project_files(checkout, "rust/kernel"))


def suites(checkout=config.CHECKOUT):
    """The names of the suites in the sources, so that none is left out unnoticed."""
    texts = [(checkout / file).read_text() for file in series.project_files(checkout, "rust")
             if file.endswith(".rs")]
    examples = ["rust_doctests_kernel"] if any("/// # Examples" in x for x in texts) else []
    return sorted([name for text in texts for name in SUITE.findall(text)] + examples)


def cases(group):
    """(suite, test, verdict) of all tests in kunit.py's report."""
    found = [(group["name"], case["name"], case["status"]) for case in group["test_cases"]]
    for inner in group["sub_groups"]:
        found += cases(inner)
    return found


def judge(tally, report, expected):
    """Count the tests of a report; suites that should be there and are not have failed."""
    found = [case for case in cases(report) if is_ours(case[1])]
    for name in sorted({suite for suite, _, _ in found} | set(expected)):
        verdicts = [(test, verdict) for suite, test, verdict in found if suite == name]
        bad = [f"{name}: {test}: {verdict}" for test, verdict in verdicts
               if verdict not in ("PASS", "SKIP")]
        skipped = [test for test, verdict in verdicts if verdict == "SKIP"]
        passed = len(verdicts) - len(bad) - len(skipped)
        if not verdicts:
            bad.append(f"{name}: none of its tests was run")
        ui.say(f"  {'FAIL' if bad else 'ok':5} {name}: {passed} passed")
        tally.passes(passed)
        for test in skipped:
            tally.skips(f"{name}: {test}")
        for what in bad:
            tally.fails(what)
    errors = report["misc"]["errors"]
    if errors and not tally.failed:
        tally.fails(f"kunit.py found {errors} errors in what the kernel printed")


def log_problems(text):
    """What a good kernel does not print, and the aids that were not on."""
    text = EXAMPLE.sub(lambda found: found.group() if is_ours(found.group(1)) else "", text)
    return dmesg.splats(text) + [f'{name} did not start: the log has no "{debug.STARTS[name]}"'
                                 for name in AIDS if debug.STARTS[name] not in text]


def make_options(source, out):
    """The make variables of the other builds, but the output folder, which kunit.py sets."""
    return [option for option in map(str, build.make(source, out)) if re.match(r"[A-Z_]+=", option)
            and not option.startswith("O=")]


def kunit(source, out, verb, *arguments):
    """kunit.py's command line."""
    return ["python3", source / KUNIT, verb, "--build_dir", out, "--kunitconfig", source / TESTS,
            "--kunitconfig", KERNEL, "--arch", "um", *arguments,
            *(x for option in make_options(source, out) for x in ("--make_options", option))]


def kernel(user_tree=None):
    """Build the kernel with the tests; gives its source and its output folder."""
    setup.toolchain()
    base, source = build.patched_source(user_tree)
    if not (source / TESTS).exists():
        raise ui.Failure("the patched tree has no unit tests", f"no {TESTS}",
                         "scripts/series check")
    out, log = build.out_folder(base, "kunit"), config.log("kunit-build")
    out.mkdir(parents=True, exist_ok=True)
    ui.run(kunit(source, out, "config"), "kunit: configuring", log, env=build.environment())
    command = build.make(source, out, "ARCH=um", "linux")
    ui.run(command, "kunit: the kernel", log, env=build.environment(), append=True,
           counts=r"^  [A-Z][A-Z0-9_. ]+ ", unit="steps", do="see the log")
    return source, out


def run(source, out, processors):
    """Run all tests; gives kunit.py's report, or None, and the kernel's log."""
    report, text = out / "kunit.json", out / "test.log"
    for file in (report, text):
        file.unlink(missing_ok=True)
    env = build.environment()
    # Its memory is a file, which belongs in /dev/shm rather than on a disk.
    env.pop("TMPDIR")
    arguments = [*processors, f"uml_dir={config.cache('run', 'kunit')}/"]
    ui.run(kunit(source, out, "exec", f"--json={report}", f"--timeout={LIMIT}",
                 *(f"--kernel_args={argument}" for argument in arguments)),
           "kunit: running", config.log("kunit"), env=env, check=False, limit=LIMIT + 60)
    return (json.loads(report.read_text()) if report.exists() else None,
            text.read_text(errors="replace") if text.exists() else "")


def step(tally, user_tree=None):
    """Build the kernel, run all tests, and judge them."""
    source, out = kernel(user_tree)
    report, log = run(source, out, TWO_PROCESSORS)
    if NOT_TWO in log:
        tally.skips("races of two processors: this host lets the kernel have one only")
        report, log = run(source, out, ())
    if report is None:
        raise ui.Failure("kunit.py made no report", ui.error_lines(config.log("kunit")),
                         "see the log", config.log("kunit"))
    judge(tally, report, suites())
    problems = log_problems(log)
    tally.judge("the kernel's log is clean", problems and [*problems, f"see {out}/test.log"])

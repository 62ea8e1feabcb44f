# SPDX-License-Identifier: GPL-2.0
"""Which steps run, and the selftests' runs: in any number, each counted, none lost."""

import argparse
import contextlib
import io
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from kev import __main__, config, test, ui

TAP = "#!/bin/sh\necho TAP version 13\necho 1..2\necho ok 1 a\necho {} 2 b\n"


class RunsTest(unittest.TestCase):
    """What the guest's shell is given is run here, with scripts for programs."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.programs = [self.program("one"), self.program("two")]

    def program(self, name, text=TAP.format("ok")):
        path = self.folder / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run_suite(self, limit=10, setting=""):
        commands = test.suite(self.programs, limit, setting)
        done = subprocess.run(["sh", "-c", commands], check=True, cwd=self.folder,
                              capture_output=True, text=True)
        return done.stdout.splitlines()

    def judge(self, limit=10, runs=1, each=lambda run: None):
        """Count `runs` runs; `each` is what makes one."""
        def one(tally, run):
            each(run)
            test.judge_programs(tally, self.folder, self.programs, limit, quiet=runs > 1)

        tally, output = test.Tally(), io.StringIO()
        with contextlib.redirect_stdout(output):
            test.repeat(tally, runs, one)
        return tally.counts(), output.getvalue()

    def test_one_run(self):
        self.assertEqual(self.run_suite(), ["one", "two"])
        counts, output = self.judge()
        self.assertEqual(counts, "4 passed, 0 failed")
        self.assertIn("  ok    one: 2 passed\n", output)

    def test_each_run_is_counted(self):
        self.program("two", "#!/bin/sh\n[ -e failed ] && exec ./one\ntouch failed\n"
                     + TAP.format("not ok"))
        counts, output = self.judge(runs=3, each=lambda run: self.run_suite())
        self.assertEqual(counts, "11 passed, 1 failed")
        self.assertIn("  FAIL  run 1 of 3: 3 passed, 1 failed\n", output)
        self.assertIn("  ok    run 2 of 3: 4 passed, 0 failed\n", output)
        self.assertIn("  ok    run 3 of 3: 4 passed, 0 failed\n", output)

    def test_run_that_cannot_be_made_is_a_failure_and_the_next_is_made(self):
        def each(run):
            if run == 1:
                raise ui.Failure("no guest", "no memory")
            self.run_suite()

        counts, output = self.judge(runs=2, each=each)
        self.assertEqual(counts, "4 passed, 1 failed")
        self.assertIn("no memory", output)

    def test_programs_are_told_how_much_to_do(self):
        self.program("one", '#!/bin/sh\n[ "$MUCH" = 7 ] || exit 1\n' + TAP.format("ok"))
        self.run_suite(setting="MUCH=7")
        self.assertEqual(self.judge()[0], "4 passed, 0 failed")

    def test_harsh_programs_are_there(self):
        there = {path.stem for path in (config.CHECKOUT / "selftests").glob("*.c")}
        self.assertLessEqual(set(test.HARSH), there)

    def test_program_that_takes_too_long(self):
        self.program("two", "#!/bin/sh\nsleep 9\n")
        self.run_suite(limit=1)
        self.assertIn("took more than 1 s", self.judge(limit=1)[1])

    def test_program_that_did_not_end_is_a_failure(self):
        self.run_suite()
        (self.folder / "two.status").unlink()
        counts, output = self.judge()
        self.assertEqual(counts, "4 passed, 1 failed")
        self.assertIn("two: did not run, or did not end", output)

    def test_guest_that_did_not_boot(self):
        self.assertIn("no TAP plan", self.judge()[1])

    def test_32_bits_that_cannot_be_had_are_a_visible_skip(self):
        tally, output = test.Tally(), io.StringIO()
        with mock.patch("kev.setup.why_not_32", return_value="no libc"), \
                contextlib.redirect_stdout(output):
            test.selftests(tally, argparse.Namespace(arch=None), "selftests32", bits=32)
        self.assertEqual(output.getvalue(), "  skip  32-bit programs: no libc\n")
        self.assertEqual(tally.counts(), "0 passed, 0 failed, 1 skipped")


class StepsTest(unittest.TestCase):
    def chosen(self, *steps, long=False, debug=False, arch=None):
        return test.chosen(argparse.Namespace(steps=list(steps), long=long, debug=debug,
                                              arch=arch))

    def test_default_leaves_out_what_takes_long(self):
        self.assertEqual(set(test.STEPS) - set(self.chosen()), set(test.LONG_STEPS))
        self.assertIn("selftests32", self.chosen())

    def test_long_and_debug(self):
        self.assertEqual(self.chosen(long=True), list(test.STEPS))
        self.assertEqual(self.chosen(debug=True), list(test.DEBUG_STEPS))
        self.assertEqual(self.chosen("host", "debug", debug=True), ["host", "debug", "debug32"])

    def test_what_makes_no_sense(self):
        for options in ({"long": True, "debug": True}, {"steps": ["nothing"]}):
            with self.assertRaises(ui.Failure):
                self.chosen(*options.pop("steps", ()), **options)

    def test_number_of_runs(self):
        self.assertEqual(__main__.positive("20"), 20)
        for text in ("0", "-1", "x", ""):
            with self.assertRaises(argparse.ArgumentTypeError):
                __main__.positive(text)

    def test_long_list_of_problems_says_how_many_more(self):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            test.Tally().judge("name", [f"problem {i}" for i in range(25)])
        self.assertIn("... and 5 more", output.getvalue())


if __name__ == "__main__":
    unittest.main()

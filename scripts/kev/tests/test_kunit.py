# SPDX-License-Identifier: GPL-2.0
"""The unit tests' run: what failed, was skipped or was left out is not overlooked."""

import tempfile
import unittest
from pathlib import Path
from unittest import mock

from kev import config, debug, kunit, test, tree, ui

LOG = "\n".join(["Linux version 7.3.4 ", *(debug.STARTS[name] for name in kunit.AIDS),
                 "KTAP version 1", "ok 1 kevent_home"])


def group(name, *cases, errors=0):
    return {"name": name, "sub_groups": [], "misc": {"errors": errors},
            "test_cases": [{"name": case, "status": status} for case, status in cases]}


def report(*groups, errors=0):
    return {**group("KUnit Test Group", errors=errors), "sub_groups": list(groups)}


class KunitTest(unittest.TestCase):
    def setUp(self):
        self.said = []
        patch = mock.patch("kev.ui.say", lambda text="": self.said.append(str(text)))
        patch.start()
        self.addCleanup(patch.stop)

    def judge(self, groups, expected, errors=0):
        tally = test.Tally()
        kunit.judge(tally, report(*groups, errors=errors), expected)
        return tally.passed, tally.failed, tally.skipped

    def test_all_pass(self):
        self.assertEqual(self.judge([group("a", ("x", "PASS"), ("y", "PASS")),
                                     group("b", ("z", "PASS"))], ["a", "b"]), (3, 0, 0))
        self.assertEqual([line.split() for line in self.said],
                         [["ok", "a:", "2", "passed"], ["ok", "b:", "1", "passed"]])

    def test_failed_and_crashed(self):
        self.assertEqual(self.judge([group("a", ("x", "FAIL"), ("y", "ERROR"), ("z", "PASS"))],
                                    ["a"], errors=1), (1, 2, 0))
        self.assertTrue(any("a: x: FAIL" in line for line in self.said))
        self.assertTrue(any("a: y: ERROR" in line for line in self.said))

    def test_examples_of_other_files_do_not_count(self):
        ours, other = "rust_doctest_kernel_sync_wait_rs_0", "rust_doctest_kernel_list_rs_3"
        self.assertEqual(self.judge([group("a", (ours, "FAIL"), (other, "FAIL"))], ["a"]),
                         (0, 1, 0))
        for name, problems in ((other, []), (ours, ["WARNING: lib/x.c:1"])):
            text = (f"{LOG}\n    # {name}.location: x.rs:1\nWARNING: lib/x.c:1\n"
                    f"    ok 4 {name}\nend\n")
            self.assertEqual(kunit.log_problems(text), problems)

    def test_skipped_is_visible(self):
        self.assertEqual(self.judge([group("a", ("x", "SKIP"), ("y", "PASS"))], ["a"]), (1, 0, 1))
        self.assertTrue(any("skip" in line and "a: x" in line for line in self.said))

    def test_suite_that_is_not_there(self):
        self.assertEqual(self.judge([group("a", ("x", "PASS"))], ["a", "b"]), (1, 1, 0))
        self.assertEqual(self.judge([], ["a"]), (0, 1, 0))

    def test_suite_of_the_kernel_counts_as_well(self):
        self.assertEqual(self.judge([group("other", ("x", "FAIL")), group("a", ("x", "PASS"))],
                                    ["a"]), (1, 1, 0))

    def test_error_that_is_no_test_of_its_own(self):
        self.assertEqual(self.judge([group("a", ("x", "PASS"))], ["a"], errors=2), (1, 1, 0))

    def test_groups_in_groups(self):
        inner = group("a", ("x", "PASS"))
        self.assertEqual(kunit.cases(report({**group("outer"), "sub_groups": [inner]})),
                         [("a", "x", "PASS")])

    def test_log(self):
        self.assertEqual(kunit.log_problems(LOG), [])
        bad = "BUG: KASAN: slab-use-after-free in x"
        self.assertEqual(kunit.log_problems(f"{LOG}\n{bad}"), [bad])
        self.assertEqual(len(kunit.log_problems("")), len(kunit.AIDS))

    def step(self, *runs):
        """(passed, failed, skipped) if each run of the kernel gives one of these."""
        tally, asked = test.Tally(), []
        with mock.patch.object(kunit, "kernel", lambda tree: ("source", Path("out"))), \
                mock.patch.object(kunit, "suites", lambda: ["a"]), \
                mock.patch.object(kunit, "run", lambda source, out, processors:
                                  (asked.append(processors), runs[len(asked) - 1])[1]):
            kunit.step(tally)
        self.assertEqual(asked, [kunit.TWO_PROCESSORS, ()][:len(runs)])
        return tally.passed, tally.failed, tally.skipped

    def test_one_processor(self):
        good = report(group("a", ("x", "PASS")))
        self.assertEqual(self.step((good, LOG)), (2, 0, 0))
        refused = (report(errors=1), f"{kunit.NOT_TWO} with PTRACE userspace.")
        self.assertEqual(self.step(refused, (good, LOG)), (2, 0, 1))
        self.assertEqual(self.step((good, "")), (1, 1, 0))
        with self.assertRaises(ui.Failure):
            with mock.patch("kev.ui.error_lines", lambda log: "why"):
                self.step((None, LOG))

    def test_suites_of_sources(self):
        with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
            checkout = Path(folder)
            (checkout / "rust").mkdir()
            tree.git(checkout, "init", "-q")
            (checkout / "rust/a.rs").write_text("#[macros::kunit_tests(one)]\nmod tests {}\n"
                                                "// #[kunit_tests(not)]\n")
            (checkout / "rust/b.rs").write_text("#[cfg(X)]\n#[kunit_tests(two)]\nmod t {}\n")
            self.assertEqual(kunit.suites(checkout), ["one", "two"])
        self.assertIn("kevent_home", kunit.suites())

    def test_make_options(self):
        with mock.patch("kev.build.make", lambda source, out: ["make", "-C", source, "O=out", "-j2",
                                                               "CC=ccache clang", "LOCALVERSION="]):
            self.assertEqual(kunit.make_options("source", "out"), ["CC=ccache clang",
                                                                   "LOCALVERSION="])


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: GPL-2.0
"""Counting a selftest's TAP, and choosing a stand-in for a base that is gone."""

import unittest

from kev import test, tree

GOOD = """\
TAP version 13
1..3
# Starting 3 tests from 1 test cases.
ok 1 abi.sizes
ok 2 abi.flags # SKIP not here
ok 3 abi.errno
# Totals: pass:2 fail:0 xfail:0 xpass:0 skip:1 error:0
"""


class TapTest(unittest.TestCase):
    def test_good(self):
        self.assertEqual(test.tap(GOOD, "0"), (2, 1, []))

    def test_failed_test(self):
        self.assertEqual(test.tap(GOOD.replace("ok 3", "not ok 3"), "1"),
                         (1, 1, ["not ok abi.errno"]))

    def test_crash_timeout_and_silence_are_failures(self):
        self.assertEqual(test.tap(GOOD, "139")[2], ["exit status 139"])
        self.assertIn("did not run", test.tap(GOOD, "")[2][0])
        self.assertIn("took more than", test.tap(GOOD, "124")[2][0])
        self.assertEqual(test.tap("", "0")[2], ["no TAP plan"])

    def test_plan_mismatch(self):
        self.assertEqual(test.tap(GOOD.replace("1..3", "1..4"), "0")[2],
                         ["planned 4 tests, 3 reported"])

    def test_skipped_program(self):
        self.assertEqual(test.tap("TAP version 13\n1..0 # SKIP no kevent\n", "4"), (0, 1, []))


class OrderTest(unittest.TestCase):
    def test_nearest_of_the_same_series_then_newer(self):
        offered = [(v, "", "") for v in ("7.2.9", "7.5.1", "7.3.9", "7.4.2", "7.3.3")]
        self.assertEqual([x[0] for x in tree.order(offered, "7.3.4")],
                         ["7.3.3", "7.3.9", "7.4.2", "7.5.1"])


if __name__ == "__main__":
    unittest.main()

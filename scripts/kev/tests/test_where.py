# SPDX-License-Identifier: GPL-2.0
"""Where the instructions go: what the plugin prints, and the kernel's symbols."""

import unittest

from kev import where

SYMBOLS = ["ffffffff81000000 T first", "ffffffff81000010 t <kevent::queue::Queue>::post",
           "ffffffff81000010 t alias", "ffffffff81000040 T last", "ffffffff82000000 D data"]
LOG = ("kevent-marks producer insns=5 locked=0 loads=0 stores=0 lines=0 shared=0\n"
       "kevent-at producer ffffffff81000012 2\n"
       "kevent-at producer ffffffff81000012 2\n"
       "kevent-at producer 401000 6\n"
       "kevent-marks consumer insns=5 locked=0 loads=0 stores=0 lines=0 shared=0\n"
       "kevent-at consumer ffffffff81000000 1\n")
ROWS = [{"name": "marked.2", "peer": "kevent"}]


class WhereTest(unittest.TestCase):
    def test_symbols(self):
        symbols = where.Symbols(SYMBOLS)
        self.assertEqual(symbols.name(0xffffffff81000000), "first")
        self.assertEqual(symbols.name(0xffffffff8100000f), "first")
        self.assertEqual(symbols.name(0xffffffff8100003f), "<kevent::queue::Queue>::post")
        self.assertEqual(symbols.name(0x401000), "the program")
        self.assertEqual(symbols.range(0xffffffff81000012),
                         (0xffffffff81000010, 0xffffffff81000040))

    def test_counts_are_per_event(self):
        parts = where.parts_of(ROWS, LOG)
        self.assertEqual(parts, {("marked", "kevent"): {
            "producer": {0xffffffff81000012: 2, 0x401000: 3},
            "consumer": {0xffffffff81000000: 0.5}}})
        self.assertEqual(where.by_function(where.Symbols(SYMBOLS), parts["marked", "kevent"]
                                           ["producer"]),
                         {"<kevent::queue::Queue>::post": 2, "the program": 3})

    def test_what_does_not_match_is_refused(self):
        with self.assertRaises(where.ui.Failure):
            where.parts_of(ROWS * 2, LOG)

    def test_a_column_for_each_peer(self):
        parts = where.parts_of(ROWS, LOG)
        text = [line.split() for line in where.table(where.Symbols(SYMBOLS), parts)]
        self.assertIn(["<kevent::queue::Queue>::post", "2.00"], text)
        self.assertIn(["all", "5.00"], text)

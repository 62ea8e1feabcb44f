# SPDX-License-Identifier: GPL-2.0
"""The benchmark's tables, comparisons and drawings, without a guest."""

import contextlib
import io
import tempfile
import unittest
import xml.dom.minidom
from pathlib import Path
from unittest import mock

from kev import bench


def row(name, peer, least, unit="insns"):
    return {"name": name, "peer": peer, "unit": unit, "min": least, "median": least,
            "mode": least, "high": least, "hits": 200}


class OtherKernels(unittest.TestCase):
    def test_nobody_else_has_their_worktree(self):
        with (tempfile.TemporaryDirectory() as folder,
              mock.patch.object(bench.config, "CACHE", Path(folder)),
              mock.patch.multiple(bench.tree, get=mock.DEFAULT, git=mock.DEFAULT,
                                  checkout=mock.DEFAULT) as mocks,
              mock.patch.object(bench.series, "applied"),
              mock.patch.multiple(bench.build, kernel=mock.DEFAULT, out_folder=mock.DEFAULT)):
            mocks["get"].return_value.repo.name = "linux"
            self.assertEqual([bench.ui.ALONE == {"each"} for _ in bench.other_kernels(None)],
                             [True] * 3)
        self.assertEqual(bench.ui.ALONE, set())


class RegressionTest(unittest.TestCase):
    OLD = [row("path.1", "kevent", 130), row("path.1", "kevent syscall", 600),
           row("collect.user.64", "kevent", 3.4)]

    def found(self, *changed):
        new = {(x["name"], x["peer"]): x for x in [*self.OLD, *changed]}
        return bench.regressions(self.OLD, list(new.values()))

    def test_the_same_is_none(self):
        self.assertEqual(self.found(), [])

    def test_one_percent_is_none_and_more_is(self):
        self.assertEqual(self.found(row("path.1", "kevent", 131)), [])
        self.assertEqual(self.found(row("path.1", "kevent", 133)),
                         ["path.1 of kevent: 130 -> 133 insns (+2.3 %)"])

    def test_less_is_none(self):
        self.assertEqual(self.found(row("path.1", "kevent", 1)), [])

    def test_rows_of_a_few_instructions_have_slack(self):
        self.assertEqual(self.found(row("collect.user.64", "kevent", 3.5)), [])
        self.assertEqual(len(self.found(row("collect.user.64", "kevent", 3.6))), 1)

    def test_from_nothing_is_one(self):
        self.assertEqual(bench.regressions([row("a", "kevent", 0)], [row("a", "kevent", 5)]),
                         ["a of kevent: 0 -> 5 insns"])

    def test_what_differs_from_boot_to_boot_is_none(self):
        with tempfile.TemporaryDirectory(dir=bench.config.cache("tmp")) as folder:
            file = Path(folder) / "baseline.json"
            with mock.patch("kev.bench.BASELINE", file), \
                    mock.patch("kev.bench.tools", return_value={"rustc": "1"}), \
                    contextlib.redirect_stdout(io.StringIO()):
                bench.write_baseline([[row("add.512", "kevent", cost), row("add.512", "aio", cost)]
                                      for cost in (1000, 1050, 900)])
                old, tools = bench.baseline()
        self.assertEqual((len(old), old[0]["min"], old[0]["high"]), (1, 900, 1050))
        self.assertEqual(tools, {"rustc": "1"})
        self.assertEqual(bench.regressions(old, [row("add.512", "kevent", 1060)]), [])
        self.assertEqual(len(bench.regressions(old, [row("add.512", "kevent", 1062)])), 1)

    def test_a_missing_row_is_one(self):
        self.assertEqual(bench.regressions(self.OLD, self.OLD[1:]),
                         ["path.1 of kevent: not measured any more"])

    def test_peers_are_not_watched(self):
        watched = [bench.watched(row(name, peer, 1)) for name, peer in (
            ("path.1", "kevent"), ("path.1", "kevent level"), ("add.1", "kevent"),
            ("path.1", "epoll edge"), ("trigger.64", "kevent"))]
        self.assertEqual(watched, [True, True, False, False, False])


class TableTest(unittest.TestCase):
    def test_the_longest_start_decides(self):
        title = {name: bench.SECTIONS[bench.section_of(name)][0] for name in (
            "collect.64", "collect.user.64", "idle.100")}
        self.assertEqual(title, {"collect.64": "collect.", "collect.user.64": "collect.user.",
                                 "idle.100": "idle."})

    def test_a_column_for_each_peer(self):
        text = bench.table([row("path.1", "kevent", 135), row("path.1", "epoll edge", 1628),
                            row("path.64", "kevent", 119.5), row("unheard-of", "kevent", 0.25)])
        self.assertEqual([line.split() for line in text.splitlines()[2:5]],
                         [["kevent", "epoll", "edge"], ["path.1", "135.0", "1628"],
                          ["path.64", "119.5", "-"]])
        self.assertIn("Other", text)
        self.assertIn("0.250", text)


class PluginTest(unittest.TestCase):
    LOG = ("noise\n"
           "kevent-marks producer insns=665 locked=2 loads=9 stores=9 lines=43 shared=1\n"
           "kevent-marks consumer insns=43 locked=2 loads=9 stores=9 lines=7 shared=1\n")

    def test_rows(self):
        rows = bench.plugin_rows([{"name": "marked.2", "peer": "kevent"}], self.LOG)
        self.assertEqual({(x["name"], x["min"]) for x in rows}, {
            ("insns.producer.2", 332.5), ("insns.consumer.2", 21.5), ("locked.producer.2", 1),
            ("locked.consumer.2", 1), ("lines.producer.2", 21.5), ("lines.consumer.2", 3.5),
            ("lines.shared.2", 0.5)})

    def test_what_does_not_match_is_refused(self):
        for marked in ([], [{"name": "marked.1", "peer": "a"}] * 2):
            with self.assertRaises(bench.ui.Failure):
                bench.plugin_rows(marked, self.LOG)


class OthersTest(unittest.TestCase):
    FOUND = {bench.WITHOUT: [row("close", "none", 500), row("read", "none", 300)],
             "CONFIG_KEVENT=n": [row("close", "none", 500), row("read", "none", 299)],
             "CONFIG_KEVENT=y": [row("close", "none", 503), row("read", "none", 300)]}

    def test_differences(self):
        lines = [line.split() for line in bench.others_table(self.FOUND)]
        self.assertEqual(lines[1:], [["close", "500.0", "+0", "+3"], ["read", "300.0", "-1", "+0"]])

    def test_more_is_told(self):
        self.assertEqual(bench.others_differ(self.FOUND), [])
        self.assertEqual(bench.others_differ(self.FOUND, "CONFIG_KEVENT=y"),
                         ["close: 500 -> 503 insns"])


class DrawingTest(unittest.TestCase):
    def test_lines_and_names(self):
        rows = [row(f"path.{n}", peer, cost / n) for n in (1, 8, 64)
                for peer, cost in (("kevent", 135), ("epoll <edge>", 900), ("none", 1))]
        lines = bench.points(rows, "path.")
        self.assertEqual(list(lines), ["kevent", "epoll <edge>"])
        self.assertEqual([x for x, _ in lines["kevent"]], [1, 8, 64])
        drawing = xml.dom.minidom.parseString(bench.svg("a", "b", "c", lines))
        self.assertEqual(len(drawing.getElementsByTagName("polyline")), 2)
        self.assertEqual(len(drawing.getElementsByTagName("circle")), 6)


if __name__ == "__main__":
    unittest.main()

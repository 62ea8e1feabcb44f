# SPDX-License-Identifier: GPL-2.0
"""The series on another version: what is merged by itself, and what is left for a person."""

import unittest
from unittest import mock

from kev import additions, port, series, tree, ui
from kev.tests.test_series import BASE, ToySeries, write
from kev.tree import git


def conflict(ours, base, theirs):
    return (f"before\n<<<<<<< HEAD\n{ours}||||||| base\n{base}=======\n{theirs}>>>>>>> patch\n"
            "after\n")


class AdditionsTest(unittest.TestCase):
    def test_added_lines_are_kept_from_both_sides(self):
        self.assertEqual(additions.settle(conflict("mod a;\n", "mod b;\n", "mod b;\nmod c;\n")),
                         ("before\nmod a;\nmod c;\nafter\n", 0))

    def test_line_that_is_changed_is_left_to_a_person(self):
        text = conflict("#define N 2\n", "#define N 3\n", "#define N 4\n")
        self.assertEqual(additions.settle(text), (text, 1))

    def test_lines_in_another_order_are_left_to_a_person(self):
        text = conflict("", "a\nb\n", "b\na\nc\n")
        self.assertEqual(additions.settle(text), (text, 1))

    def test_each_conflict_counts(self):
        good, bad = conflict("", "", "c\n"), conflict("x\n", "y\n", "z\n")
        self.assertEqual(additions.settle(good + bad + good),
                         ("before\nc\nafter\n" + bad + "before\nc\nafter\n", 1))


class PortTest(ToySeries):
    """The series is applied to an older tree, whose list is shorter."""
    files = {**BASE, "fs/Makefile": "obj-y += open.o\nobj-y += stat.o\nobj-y += new.o\n"}

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(tree, "get_version", lambda version: self.base))

    def older(self):
        """A base of Linux 7.2.1, and a patch for it that adds a line to lib.rs."""
        repo = self.repo.parent / "older"
        repo.mkdir()
        git(repo, "init", "-q", "-b", "base")
        write(repo, {**BASE, "fs/Makefile": "obj-y += open.o\nobj-y += stat.o\n"})
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", "Linux 7.2.1")
        base = tree.finish(repo, "7.2.1")
        git(repo, "checkout", "-q", "-b", "first")
        write(repo, {"rust/kernel/lib.rs": "pub mod sync;\npub mod time;\n"})
        git(repo, "commit", "-q", "-a", "-m", "rust: add time")
        git(repo, "format-patch", "-q", "-o", self.checkout / "patches/7.2", "base..first")
        return base

    def test_both_sides_are_kept(self):
        base = self.older()
        tip = series.applied(base, self.checkout)

        def show(path):
            return git(base.repo, "show", f"{tip}:{path}")
        self.assertEqual(show("fs/Makefile"),
                         "obj-y += open.o\nobj-y += stat.o\nobj-y += kevent/\n")
        self.assertEqual(show("rust/kernel/lib.rs"), "pub mod sync;\npub mod time;\n")
        self.assertEqual(series.drift(self.checkout, base.repo, base.commit, tip), [])
        self.assertEqual(len(series.commits(base.repo, base.commit, tip)), 4)

    def test_what_cannot_be_merged_is_named(self):
        base = self.older()
        patch = self.checkout / "patches/0002-kevent-build-it.patch"
        patch.write_text(patch.read_text().replace(" obj-y += new.o", "-obj-y += new.o")
                         .replace("@@ -1,3 +1,4 @@", "@@ -1,3 +1,3 @@"))
        with self.assertRaisesRegex(ui.Failure, "0002-kevent-build-it.patch does not apply"):
            series.applied(base, self.checkout)

    def test_without_patches_for_it_the_series_must_apply_as_it_is(self):
        base = self.older()
        for path in port.patches(self.checkout, "7.2.1"):
            path.unlink()
        with self.assertRaisesRegex(ui.Failure, "0002-kevent-build-it.patch does not apply"):
            series.applied(base, self.checkout)

    def test_series_is_not_regenerated_there(self):
        self.older()
        port.refuse(self.checkout, "7.3.4", "regen")
        with self.assertRaisesRegex(ui.Failure, "the series is kept on"):
            port.refuse(self.checkout, "7.2.9", "regen")


if __name__ == "__main__":
    unittest.main()

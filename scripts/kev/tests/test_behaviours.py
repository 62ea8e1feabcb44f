# SPDX-License-Identifier: GPL-2.0
"""Reading the selftests' sources, and finding what the documentation lacks or has too much."""

import tempfile
import unittest
from pathlib import Path

from kev import behaviours, config

SOURCE = r'''// SPDX-License-Identifier: GPL-2.0
/* TEST(in_a_comment) is none. */
TEST(without_comment)
{
	puts("TEST(in_a_string)");
}

/* Not directly above. */

FIXTURE(ring) {
};

/*
 * A block of
 * two lines.
 */
TEST_F(ring, has_a_block)
{
	int x;	// not above a test
}

// Line one,
// line two.
TEST_F_TIMEOUT(ring,
	       has_lines, 60)
{
}

int y; /* belongs to y */
TEST_SIGNAL(dies, SIGABRT) { }
TEST_HARNESS_MAIN
'''
NAMES = ["abi.without_comment", "abi.ring.has_a_block", "abi.ring.has_lines", "abi.dies"]
SECTION = """\
What is tested
==============

.. list-table::

   * - A block
     - ``abi.ring.has_a_block``, ``abi.ring.has_lines``
   * - See ``kevent.h``
     - ``abi.dies``

More
----

``abi.without_comment``

Next
====

``abi.elsewhere``
"""


class ParseTest(unittest.TestCase):
    def setUp(self):
        self.tests, self.problems = behaviours.parse("abi", SOURCE, "abi.c")

    def test_names_and_places(self):
        self.assertEqual([t.name for t in self.tests], NAMES)
        self.assertEqual([t.where for t in self.tests], ["abi.c:3", "abi.c:17", "abi.c:24",
                                                         "abi.c:30"])
        self.assertEqual(self.problems, [])

    def test_comments(self):
        self.assertEqual([t.comment for t in self.tests],
                         ["TEST(in_a_comment) is none.", "A block of two lines.",
                          "Line one, line two.", ""])

    def test_name_made_by_a_macro_is_a_problem(self):
        tests, problems = behaviours.parse("abi", "#define A(x) TEST_F(ring, x)\nA(b)\n", "abi.c")
        self.assertEqual(tests, [])
        self.assertIn("abi.c:1: TEST_F inside something else", problems[0])


class FolderTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "Makefile").write_text(
            "TEST_GEN_PROGS := abi \\\n\tlevel\nTEST_GEN_PROGS += wait\n")

    def test_programs(self):
        self.assertEqual(behaviours.programs((self.folder / "Makefile").read_text()),
                         {"abi", "level", "wait"})

    def test_program_that_is_not_built_is_a_problem(self):
        (self.folder / "wait.c").write_text("TEST(a)\n{\n}\n")
        (self.folder / "lost.c").write_text("TEST(b)\n{\n}\n")
        (self.folder / "util.h").write_text("#define X 1\n")
        tests, problems = behaviours.read(self.folder)
        self.assertEqual([t.name for t in tests], ["lost.b", "wait.a"])
        self.assertEqual(len(problems), 1)
        self.assertIn("lost.c: it has tests", problems[0])


class CompareTest(unittest.TestCase):
    def setUp(self):
        self.tests, _ = behaviours.parse("abi", SOURCE, "abi.c")

    def compare(self, text):
        return behaviours.compare(self.tests, text, "kevent.rst")

    def test_same(self):
        self.assertEqual(self.compare(SECTION), ([], []))

    def test_missing_test_is_named(self):
        missing, unknown = self.compare(SECTION.replace("``abi.dies``", "nothing"))
        self.assertEqual(missing, ['abi.c:30: abi.dies is not in the section "What is tested" of '
                                   "kevent.rst"])
        self.assertEqual(unknown, [])

    def test_unknown_name_is_named(self):
        missing, unknown = self.compare(SECTION.replace("``abi.dies``", "``abi.dies`` ``old.x``"))
        self.assertEqual((missing, unknown), ([], ["kevent.rst:9: there is no test old.x"]))

    def test_other_sections_do_not_count(self):
        moved = SECTION.replace("``abi.without_comment``", "none").replace("elsewhere",
                                                                           "without_comment")
        self.assertEqual(len(self.compare(moved)[0]), 1)

    def test_no_section(self):
        missing, unknown = self.compare("Title\n=====\n\n``abi.dies``\n")
        self.assertIn('kevent.rst has no section "What is tested"', missing[0])
        self.assertEqual(len(missing), 1 + len(NAMES))
        self.assertTrue(unknown)


if __name__ == "__main__":
    unittest.main()

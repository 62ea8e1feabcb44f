# SPDX-License-Identifier: GPL-2.0
"""Taking programs out of man pages, and judging what the library's programs printed."""

import re
import tempfile
import unittest
from pathlib import Path

from kev import config, library

PAGE = r""".TH x 2 2026-01-01 "x"
.SH DESCRIPTION
.EX
struct not_this;
.EE
.SH EXAMPLES
A program.
.P
.EX
#include <stdio.h>
int main(void)
{
    return printf("\-1\en") \- 3;
}
.EE
.SH SEE ALSO
.BR x (2)
"""

STAT = """\
== one
PID  COMMAND  FD  RINGS  FLAGS           REGISTERED  POSTED  WAITING  LEVEL
123  known     3      4  overflow,level           9       4        2      1
     file: 1 ready; timer: 1 idle; user: 1 disabled, 4 posted, 2 waiting
123  known     6      1  -                        2       1        0      0
     user: 1 idle, 1 posted
== all
PID  COMMAND  FD  RINGS  FLAGS           REGISTERED  POSTED  WAITING  LEVEL
123  known     3      4  overflow,level           9       4        2      1
     file: 1 ready; timer: 1 idle; user: 1 disabled, 4 posted, 2 waiting
123  known     6      1  overflow                 2       1        1      0
     user: 1 waiting, 1 posted
== rates
PID  COMMAND  FD  RINGS  FLAGS           REGISTERED  POSTED  WAITING  LEVEL  \
post/s  merge/s  collect/s  overflow/s  cancel/s
123  known     3      4  overflow,level           9       4        2      1       \
0        0          0           0         0
123  known     6      1  -                        2       1        0      0     \
150      100         99         0.5        50

PID  COMMAND  FD
== stopped
124
== left
== wrong
kevent-stat: process 1 has no kevent queue
kevent-stat: there is no process 999999
"""


def failed(tests):
    return [name for name, problems in tests if problems]


class LibraryTest(unittest.TestCase):
    def test_the_example_is_found_and_its_escapes_undone(self):
        self.assertEqual(library.example_of(PAGE), "#include <stdio.h>\nint main(void)\n{\n"
                         '    return printf("-1\\n") - 3;\n}\n')
        self.assertEqual(library.example_of(PAGE.replace("EXAMPLES", "NOTES")), "")

    def test_every_page_has_an_example(self):
        for page in library.MAN.iterdir():
            self.assertIn("main(void)", library.example_of(page.read_text()), page)

    def test_what_does_not_compile_is_found(self):
        with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
            source = Path(folder) / "x.c"
            source.write_text("int main(void) { return 0; }\n")
            self.assertEqual(library.compiled(["gcc", "-std=c11"], source, f"{folder}/x"), [])
            source.write_text("int main(void) { int unused; return 0; }\n")
            self.assertIn("unused", "\n".join(
                library.compiled(["gcc", "-std=c11"], source, f"{folder}/y")))

    def test_standards(self):
        self.assertEqual([library.standard(x) for x in ("c", "c++", "c-32")],
                         ["-std=c11", "-std=c++17", "-std=c11"])
        self.assertEqual(library.standard("c++", gnu=True), "-std=gnu++17")

    def test_output_and_status_are_judged(self):
        case = library.Case("timer", "x", "three\n")
        self.assertEqual(library.problems_of(case, "three\n", "0"), [("timer", [])])
        self.assertTrue(failed(library.problems_of(case, "three\n", "1")))
        self.assertTrue(failed(library.problems_of(case, "three\n", "")))
        self.assertTrue(failed(library.problems_of(case, "three\nfour\n", "0")))

    def test_tests_in_c_are_counted_one_by_one(self):
        case = library.Case("guest-c", "x", r"1\.\.\d+\n(.*\n)+")
        good = "1..2\nok 1 one\nok 2 two\n"
        self.assertEqual(library.problems_of(case, good, "0"),
                         [("guest-c: one", []), ("guest-c: two", [])])
        bad = good.replace("ok 2", "# x.c:1: y\nnot ok 2")
        self.assertEqual(failed(library.problems_of(case, bad, "1")), ["guest-c: two"])
        self.assertEqual(failed(library.problems_of(case, good, "1")), ["guest-c"])
        self.assertEqual(failed(library.problems_of(case, good, "124")), ["guest-c"])
        self.assertEqual(failed(library.problems_of(case, "1..2\nok 1 one\n", "0")),
                         ["guest-c"])

    def test_kevent_stat_is_judged(self):
        self.assertEqual(failed(library.stat_problems(STAT)), [])
        for old, new in ((" 4  overflow,level", " 8  overflow,level"),
                         ("1 idle; user", "1 x; user"), ("  150", "    0"),
                         ("      0\n123", "      7\n123"), ("\nPID  COMMAND  FD\n", ""),
                         ("124\n", "1\n"), ("== left\n", "== left\nkevent-stat-9\n"),
                         ("no kevent queue", "nothing")):
            with self.subTest(new=new):
                self.assertIn(old, STAT)
                self.assertTrue(failed(library.stat_problems(STAT.replace(old, new))))

    def test_each_case_is_run_and_keeps_its_output(self):
        todo = library.cases(Path("/x y"), ["c", "c-32"]) \
            + library.native_cases(Path("/x y"), Path("/r"), ["c", "c-32"])
        names = [case.name for case in todo]
        self.assertEqual(len(names), len(set(names)))
        text = library.script(todo)
        for name in names:
            self.assertRegex(text, rf"(?m)>{re.escape(name)}\.status$")


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: GPL-2.0
"""What the selftests test: read from their sources, and compared with the documentation.

A test is called program.test, or program.fixture.test if it has a fixture; the variants
of a fixture are one test. The section "What is tested" of kevent-tests.rst has to name
every test as ``program.test``, and nothing else in this form.

    PYTHONPATH=scripts python3 -B -m kev.behaviours [--write]

lists the tests, each with the comment directly above it, in the order of the sources;
--write writes them to the document.
"""

import itertools
import re
import sys
import textwrap
from dataclasses import dataclass

from kev import config

SOURCES = config.CHECKOUT / "selftests"
DOCUMENT = config.CHECKOUT / "rust/Documentation/userspace-api/kevent-tests.rst"
TITLE = "What is tested"

COMMENT = r"//[^\n]*|/\*.*?\*/"
LITERAL = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
TOKEN = re.compile(f"{COMMENT}|{LITERAL}", re.S)
#: The harness's macros that define a test, and a definition with its first two arguments.
MACRO = re.compile(r"\bTEST(_F)?(_SIGNAL|_TIMEOUT)?\b(?=\s*\()")
DEFINITION = re.compile(r"^(?P<macro>TEST(_F)?(_SIGNAL|_TIMEOUT)?)\s*\(\s*(\w+)\s*(?:,\s*(\w+))?",
                        re.M)
NAMED = re.compile(r"``(\w+(?:\.\w+){1,2})``")
#: What looks like the name of a test but is that of a file.
FILE = re.compile(r"\.(c|h|rs|rst)$")


@dataclass(frozen=True)
class Test:
    """A test, where it is, and the comment directly above it ('' if there is none)."""
    name: str
    comment: str
    where: str


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def plain(comment):
    """The text of a comment, on one line."""
    if comment.startswith("//"):
        lines = [comment[2:]]
    else:
        lines = [re.sub(r"^\s*\*+ ?", "", line) for line in comment[2:-2].split("\n")]
    return " ".join(" ".join(lines).split())


def comment_above(text, comments, start):
    """The comment that ends on the line before `start`: one block, or lines of //."""
    found = []
    for comment in reversed(comments):
        if comment.end() > start:
            continue
        if not re.fullmatch(r"[ \t]*\n", text[comment.end():start]):
            break
        start = text.rfind("\n", 0, comment.start()) + 1
        if text[start:comment.start()].strip():
            break               # it belongs to the code before it
        found.insert(0, plain(comment.group()))
        if comment.group().startswith("/*"):
            break
    return " ".join(found)


def parse(program, text, where):
    """([Test], [problem]) of one source file."""
    tokens = list(TOKEN.finditer(text))
    comments = [t for t in tokens if t.group().startswith("/")]
    code = TOKEN.sub(lambda t: re.sub(r"[^\n]", " ", t.group()), text)
    tests, defined = [], set()
    for found in DEFINITION.finditer(code):
        defined.add(found.start())
        fixture, name = found.group(4, 5) if "_F" in found["macro"] else (None, found.group(4))
        tests.append(Test(".".join(x for x in (program, fixture, name) if x),
                          comment_above(text, comments, found.start()),
                          f"{where}:{line_of(text, found.start())}"))
    problems = [f"{where}:{line_of(text, found.start())}: {found.group()} inside something else, "
                "so that the name of the test cannot be read here; write the test out"
                for found in MACRO.finditer(code) if found.start() not in defined]
    return tests, problems


def programs(makefile):
    """The programs that a selftests Makefile builds, to be run by it or by hand."""
    joined = makefile.replace("\\\n", " ")
    return {name for words in re.findall(r"^TEST_GEN_PROGS(?:_EXTENDED)?\s*[:+?]?=(.*)$", joined,
                                         re.M)
            for name in words.split()}


def read(folder=SOURCES):
    """([Test], [problem]) of all selftests; a problem is what cannot be read, or never runs."""
    built = programs((folder / "Makefile").read_text())
    tests, problems = [], []
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        where = f"{folder.name}/{path.name}"
        found, bad = parse(path.stem, path.read_text(), where)
        if found and (path.suffix != ".c" or path.stem not in built):
            bad.append(f"{where}: it has tests, but TEST_GEN_PROGS in {folder.name}/Makefile "
                       f"has no {path.stem}")
        tests += found
        problems += bad
    return tests, problems


def is_underline(line):
    return len(line) > 2 and len(set(line)) == 1 and not line[0].isalnum() and line[0] != " "


def documented(text):
    """{name: line number} of the tests that the section names; None if there is no section."""
    lines = [line.rstrip() for line in text.split("\n")]
    titles = [(i, lines[i + 1][0]) for i in range(len(lines) - 1)
              if lines[i] and not is_underline(lines[i]) and is_underline(lines[i + 1])
              and len(lines[i + 1]) >= len(lines[i])]
    for at, (start, mark) in enumerate(titles):
        if lines[start] == TITLE:
            end = next((i for i, other in titles[at + 1:] if other == mark), len(lines))
            return {name: i + 1 for i in range(start + 2, end)
                    for name in NAMED.findall(lines[i]) if not FILE.search(name)}
    return None


def compare(tests, text, document=DOCUMENT.name):
    """(tests that the document does not name, names in it that no test has)."""
    names = documented(text)
    if names is None:
        none = f'{document} has no section "{TITLE}"'
        return [f"{none}; add one that names these {len(tests)} tests as ``program.test``:",
                *(f"{t.where}: {t.name}" for t in tests)], [none]
    known = {t.name for t in tests}
    return ([f'{t.where}: {t.name} is not in the section "{TITLE}" of {document}'
             for t in tests if t.name not in names],
            [f"{document}:{line}: there is no test {name}"
             for name, line in names.items() if name not in known])


def document(tests):
    """The text of the document: a table for each program."""
    def heading(text, mark):
        return [text, mark * len(text), ""]

    def group(test):
        return test.name.split(".")[0]

    lines = [".. SPDX-License-Identifier: GPL-2.0", "", *heading(TITLE, "="),
             *textwrap.wrap("The behaviour of kevent and the test of each, in "
                            "``tools/testing/selftests/kevent``: the program, the fixture if "
                            "there is one, and the test. About half of them run in variants, by "
                            "the ring and by system call. They can be built as 32-bit "
                            "programs, too.", 79), ""]
    for program, of_program in itertools.groupby(tests, group):
        lines += [*heading(program, "-"), ".. list-table::", "   :widths: 40 60", ""]
        for test in of_program:
            behaviour = test.name.split(".")[-1].replace("_", " ")
            lines += [f"   * - {behaviour}", f"     - ``{test.name}``"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main():
    tests, problems = read()
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(document(tests))
    else:
        for test in tests:
            print(test.name, test.comment, sep="\t")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

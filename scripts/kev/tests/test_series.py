# SPDX-License-Identifier: GPL-2.0
"""The series against a toy kernel tree: regen, drift, refusals."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path

from kev import config, series, tree, ui
from kev.tree import git

BASE = {
    "Makefile": "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n",
    "fs/Makefile": "obj-y += open.o\n",
    "rust/kernel/lib.rs": "pub mod sync;\n",
}
RING = "// SPDX-License-Identifier: GPL-2.0\n//! Ring.\nfn head() {}\n"


def write(top, files):
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)


class ToySeries(unittest.TestCase):
    """Three patches: a new file; an edit of an existing file and of that new file;
    a selftest."""
    files = BASE

    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.checkout, self.repo = Path(folder.name) / "checkout", Path(folder.name) / "linux"
        for top in (self.checkout, self.repo):
            top.mkdir()
            git(top, "init", "-q", "-b", "base")
        write(self.repo, self.files)
        self.base_commit = self.commit("Linux 7.3.4")
        self.base = tree.finish(self.repo, "7.3.4")
        git(self.repo, "checkout", "-q", "-b", "work")
        write(self.repo, {"fs/kevent/ring.rs": RING.replace("head", "first")})
        self.commit("kevent: add the ring")
        write(self.repo, {"fs/kevent/ring.rs": RING,
                          "fs/Makefile": self.files["fs/Makefile"] + "obj-y += kevent/\n"})
        self.commit("kevent: build it\n\nA body, with a\n  table.\n")
        write(self.repo, {"tools/testing/selftests/kevent/abi.c": "// abi\n"})
        self.commit("selftests: kevent: add abi")
        write(self.checkout, {"rust/kevent/ring.rs": RING, "selftests/abi.c": "// abi\n"})
        self.regen(branch="work")
        self.first = self.patches()

    def commit(self, message):
        git(self.repo, "add", "-A")
        git(self.repo, "commit", "-q", "-m", message)
        return git(self.repo, "rev-parse", "HEAD").strip()

    def regen(self, **options):
        with contextlib.redirect_stdout(io.StringIO()):
            return series.regen(self.base, self.checkout, **options)

    def patches(self):
        return {p.name: p.read_text() for p in series.patch_files(self.checkout)}

    def problems(self):
        tip = series.applied(self.base, self.checkout)
        return [line for find in (series.drift, series.not_identical)
                for line in find(self.checkout, self.repo, self.base_commit, tip)]

    def rewritten(self):
        return series.rewritten(self.repo, self.base_commit,
                                series.applied(self.base, self.checkout))

    def refused(self, **options):
        with self.assertRaises(ui.Failure) as caught:
            self.regen(**options)
        return str(caught.exception)


class SeriesTest(ToySeries):
    def test_regenerates_the_same_bytes(self):
        self.assertEqual([n[:4] for n in self.first], ["0001", "0002", "0003"])
        self.assertIn("Subject: [PATCH 2/3] kevent: build it", "".join(self.first.values()))
        self.assertEqual(self.problems(), [])
        self.regen()
        self.assertEqual(self.patches(), self.first)

    def test_one_character_is_found_and_folded_into_its_patch(self):
        ring = self.checkout / "rust/kevent/ring.rs"
        ring.write_text(RING.replace("head", "heaD"))
        self.assertEqual(self.problems(), ["rust/kevent/ring.rs: differs from what git am "
                                           "gives; do: scripts/series regen"])
        self.regen()
        self.assertEqual(self.problems(), [])
        changed = [n[:4] for n, text in self.patches().items() if text != self.first[n]]
        self.assertEqual(changed, ["0002"])
        self.assertIn("+fn heaD", self.patches()["0002-kevent-build-it.patch"])

    def grown(self, more, lines=("use {", "    one, //", "};", *"abcdefgh")):
        """A patch more, which makes of a file of patch 4 what it gives for `more`."""
        self.commit_source(lines)
        self.commit_source(more(lines))
        self.regen(branch="work")
        return [n for n in self.patches() if n > "0004"]

    def commit_source(self, lines):
        text = "// SPDX-License-Identifier: GPL-2.0\n" + "\n".join(lines) + "\n"
        for top, name in ((self.repo, "fs/kevent/source.rs"),
                          (self.checkout, "rust/kevent/source.rs")):
            write(top, {name: text})
        self.commit("kevent: add more")

    def test_each_line_is_folded_into_the_patch_that_adds_it(self):
        first, second = self.grown(lambda lines: [*lines, "timer"])
        source = self.checkout / "rust/kevent/source.rs"
        source.write_text(source.read_text().replace("a\n", "A\n").replace("timer", "Timer"))
        self.regen()
        self.assertEqual(self.problems(), [])
        self.assertIn("+A\n", self.patches()[first])
        self.assertNotIn("+A\n", self.patches()[second])
        self.assertIn("+Timer\n", self.patches()[second])

    def test_list_that_goes_on_is_not_rewritten(self):
        self.grown(lambda lines: ["use {", "    one,", "    two, //", *lines[2:]])
        self.assertNotIn("source.rs", "\n".join(self.rewritten()))

    def test_type_that_gets_values_is_not_rewritten(self):
        self.grown(lambda lines: [line.replace("match *self {}", "match self {") for line in lines],
                   lines=["enum Source {}", "    match *self {}"])
        self.assertNotIn("source.rs", "\n".join(self.rewritten()))

    def test_line_that_is_gone_is_rewritten(self):
        self.grown(lambda lines: lines[:-1])
        self.assertIn("patch 5 removes 1 lines of fs/kevent/source.rs",
                      "\n".join(self.rewritten()))

    def test_patch_that_rewrites_an_earlier_one_is_found(self):
        self.assertRegex("\n".join(self.rewritten()),
                         r"^patch 2 removes 1 lines of fs/kevent/ring.rs, which an earlier")

    def test_edited_patch_is_found(self):
        patch = self.checkout / "patches/0003-selftests-kevent-add-abi.patch"
        patch.write_text(patch.read_text().replace("// abi", "// ABI"))
        found = "\n".join(self.problems())
        self.assertIn("selftests/abi.c: differs", found)
        self.assertIn("patches/0003-selftests-kevent-add-abi.patch: is not", found)

    def test_new_file_needs_a_patch(self):
        write(self.checkout, {"rust/include/uapi/linux/kevent.h": "/* new */\n"})
        self.assertIn("rust/include/uapi/linux/kevent.h: no patch adds it", self.problems()[0])
        self.assertIn("--add rust/include/uapi/linux/kevent.h=NUMBER", self.refused())
        self.regen(add={"include/uapi/linux/kevent.h": 1})
        self.assertEqual(self.problems(), [])
        self.assertIn("+/* new */", self.patches()["0001-kevent-add-the-ring.patch"])
        write(self.checkout, {"rust/kevent/more.rs": "//\n"})
        self.assertIn("there is no patch 9", self.refused(add={"fs/kevent/more.rs": 9}))


    def test_removed_file_leaves_its_patches(self):
        (self.checkout / "rust/kevent/ring.rs").unlink()
        self.assertIn("rust/kevent/ring.rs: the series has it", self.problems()[0])
        # Patch 1 has nothing else in it.
        self.assertIn('patch 1 ("kevent: add the ring") would be empty', self.refused())
        write(self.checkout, {"rust/kevent/other.rs": RING})
        self.regen(add={"fs/kevent/other.rs": 1})
        self.assertEqual(self.problems(), [])
        self.assertNotIn("ring.rs", "".join(self.patches().values()))

    def test_existing_kernel_files_do_not_live_in_the_checkout(self):
        write(self.checkout, {"rust/kernel/lib.rs": "pub mod kevent;\n"})
        self.assertIn("the kernel tree already has rust/kernel/lib.rs", self.refused())

    def test_file_without_a_place_is_refused(self):
        write(self.repo, {"samples/kevent.c": "//\n"})
        self.commit("samples: kevent")
        self.assertIn("samples/kevent.c: a new file with no place", self.refused(branch="work"))
        write(self.checkout, {"rust/stray.rs": "//\n"})
        self.assertIn("rust/stray.rs has no place", self.refused())

    def test_change_in_the_work_tree_is_not_lost(self):
        text = RING + "// tree\n"
        write(self.repo, {"fs/kevent/ring.rs": text})
        self.commit("kevent: more ring")
        self.assertIn("rust/kevent/ring.rs and fs/kevent/ring.rs", self.refused(branch="work"))
        self.regen(branch="work", take="tree")
        self.assertEqual((self.checkout / "rust/kevent/ring.rs").read_text(), text)
        self.assertEqual(self.problems(), [])
        self.assertEqual(len(self.patches()), 4)

    def test_patch_that_does_not_apply_is_named(self):
        patch = self.checkout / "patches/0002-kevent-build-it.patch"
        patch.write_text(patch.read_text().replace("obj-y += open.o", "obj-y += close.o"))
        (name, found), = series.check(self.base, self.checkout)
        self.assertIn("0002-kevent-build-it.patch does not apply", found[0])

    def test_spdx_line_is_missed(self):
        self.assertEqual(series.without_spdx(self.checkout),
                         ["selftests/abi.c: no SPDX-License-Identifier in its first three "
                          "lines; add one"])


if __name__ == "__main__":
    unittest.main()

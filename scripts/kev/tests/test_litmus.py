# SPDX-License-Identifier: GPL-2.0
"""Litmus tests: what herd7 says, names, twins and letters are not misread."""

import tempfile
import unittest
from pathlib import Path

from kev import config, litmus

TEXT = """\
C {name}
(* SPDX-License-Identifier: GPL-2.0 *)

(*
 * Result: {result}
 *)
{{}}

P0(int *x)
{{
	WRITE_ONCE(*x, 1);
}}

exists ({condition})
"""
OUTPUT = """\
Test ring-A-B Allowed
States 1
0:r0=0;
No
Witnesses
Positive: 0 Negative: 3
{extra}Condition exists (0:r0=1)
Observation ring-A-B {observed} 0 3
Time ring-A-B 0.01
"""
RUST = """\
// SPDX-License-Identifier: GPL-2.0

//! What (X) is.
//!
//! ```text
//! one side               the other
//!   (A) store                (B) load
//! ```
//!
//! ```text
//!       (C) fence
//! ```

// (D)
"""


def test(name, result=None, condition="0:r0=1", title=None):
    result = result or ("Sometimes" if "-without-" in name else "Never")
    return litmus.Test(Path(f"{name}.litmus"), TEXT.format(
        name=title or name, result=result, condition=condition))


class LitmusTest(unittest.TestCase):
    def folder(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        return Path(folder.name)

    def test_name(self):
        one, twin = test("ring-A-C-retry"), test("ring-A-C-retry-without-C")
        self.assertEqual((one.twin, one.expected, one.source), (False, "Never", "ring"))
        self.assertEqual((twin.twin, twin.expected, twin.base), (True, "Sometimes", one.name))
        self.assertEqual(one.letters, {"A", "C"})
        self.assertEqual(twin.letters, one.letters)

    def test_good_files(self):
        self.assertEqual(litmus.inconsistent([test("ring-A-B"), test("ring-A-B-without-A")]), [])

    def test_what_is_wrong_with_files_is_found(self):
        good, twin = test("ring-A-B"), test("ring-A-B-without-A")
        for files, what in (
                ([], "there is none"),
                ([good], "has no twin"),
                ([twin], "there is no ring-A-B"),
                ([good, test(twin.name, condition="0:r0=2")], "something else"),
                ([good, test(twin.name, result="Never")], "does not say Result: Sometimes"),
                ([test(good.name, result="Sometimes"), twin], "does not say Result: Never"),
                ([test(good.name, title="ring-A-C"), twin], "another name")):
            problems = litmus.inconsistent(files)
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(what, problems[0])

    def test_observation(self):
        for observed in ("Never", "Sometimes", "Always"):
            self.assertEqual(litmus.observation(OUTPUT.format(observed=observed, extra="")),
                             (observed, []))
        self.assertEqual(litmus.observation('Warning: File "x": unexpected\n'),
                         (None, ['Warning: File "x": unexpected']))
        self.assertEqual(litmus.observation(""), (None, []))

    def test_flags_but_the_harmless_one_are_problems(self):
        text = OUTPUT.format(observed="Never", extra="Flag data-race\n"
                             "Flag Assuming-common-inner-shareable-domain\n")
        self.assertEqual(litmus.observation(text), ("Never", ["flag data-race"]))

    def fake(self, output):
        """A herd7 that always says the same."""
        herd = self.folder() / "herd7"
        herd.write_text(f"#!/bin/sh\necho \"$1\" >>{herd}.models\ncat <<'END'\n{output}END\n")
        herd.chmod(0o755)
        return herd

    def test_run_wants_never_of_a_test_and_sometimes_of_a_twin(self):
        for observed in ("Never", "Sometimes"):
            herd = self.fake(OUTPUT.format(observed=observed, extra=""))
            for one in (test("ring-A-B"), test("ring-A-B-without-A")):
                problems = litmus.run([str(herd)], [["model"]], one)
                self.assertEqual(bool(problems), one.expected != observed, problems)

    def test_run_without_an_answer_fails(self):
        self.assertIn("nothing, not Never",
                      litmus.run([str(self.fake(""))], [["model"]], test("ring-A-B"))[0])

    def test_twins_are_run_with_the_first_model_alone(self):
        for name, models in (("ring-A-B", "one\ntwo\n"), ("ring-A-B-without-A", "one\n")):
            herd = self.fake("")
            litmus.run([str(herd)], [["one"], ["two"]], test(name))
            self.assertEqual(Path(f"{herd}.models").read_text(), models)

    def test_letters_are_those_of_the_diagrams(self):
        self.assertEqual(litmus.lettered(RUST), {"A", "B", "C"})

    def test_letter_without_a_test_and_test_without_a_letter(self):
        checkout = self.folder()
        (checkout / "rust/kevent").mkdir(parents=True)
        (checkout / "rust/kevent/ring.rs").write_text(RUST)
        whole = [test("ring-A-B"), test("ring-C")]
        self.assertEqual(litmus.untested(checkout, whole), [])
        self.assertEqual(litmus.untested(checkout, whole[:1]),
                         ["rust/kevent/ring.rs: no litmus test is about C"])
        self.assertEqual(litmus.untested(checkout, whole[:1] + [test("ring-C-without-C")]),
                         ["rust/kevent/ring.rs: no litmus test is about C"])
        self.assertEqual(litmus.untested(checkout, whole + [test("ring-A-E"), test("rung-A")]),
                         ["rung-A: there is no rung.rs, nor .c", "ring: a litmus test is about E, "
                          "which rust/kevent/ring.rs does not have"])


if __name__ == "__main__":
    unittest.main()

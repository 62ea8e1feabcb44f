# SPDX-License-Identifier: GPL-2.0
"""A kernel that was built and booted well is remembered, and only that one."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from kev import each, ui


class Each(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "seen.json"

    def one(self, seen, tree="tree", settings="settings", fails=()):
        """(went well, words, kernels built) of a source and settings of these names."""
        with (mock.patch.multiple(each.build, out_folder=mock.DEFAULT, fragments=mock.DEFAULT,
                                  command_and_settings=lambda *_: ([], settings),
                                  kernel=mock.DEFAULT) as mocks,
              mock.patch.object(each.tree, "git", lambda *_: f"{tree}\n"),
              mock.patch.object(each, "boots", side_effect=fails),
              contextlib.redirect_stdout(io.StringIO())):
            well, words = each.one(None, None, mock.MagicMock(), None, "name", seen)
            return well, words, mocks["kernel"].call_count

    def test_what_went_well_is_not_built_again(self):
        well, words, built = self.one(each.Seen(self.path), fails=[None])
        self.assertEqual((well, words.rstrip(), built), (True, "ok     0:00", 1))
        well, words, built = self.one(each.Seen(self.path))
        self.assertEqual((well, words, built), (True, "ok     0:00*", 0))

    def test_other_sources_and_settings_are(self):
        self.one(each.Seen(self.path), fails=[None])
        self.assertEqual(self.one(each.Seen(self.path), tree="other", fails=[None])[2], 1)
        self.assertEqual(self.one(each.Seen(self.path), settings="other", fails=[None])[2], 1)

    def test_a_failure_is_not_remembered(self):
        failure = ui.Failure("boot", "no", "do")
        self.assertFalse(self.one(each.Seen(self.path), fails=[failure])[0])
        self.assertEqual(self.one(each.Seen(self.path), fails=[None])[::2], (True, 1))

    def test_again_forgets(self):
        self.one(each.Seen(self.path), fails=[None])
        self.assertEqual(self.one(each.Seen(self.path, again=True), fails=[None])[2], 1)


if __name__ == "__main__":
    unittest.main()

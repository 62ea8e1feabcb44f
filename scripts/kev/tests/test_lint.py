# SPDX-License-Identifier: GPL-2.0
"""What compilers and checkers say is read, and counted once."""

import unittest

from kev import lint

TEXT = """\
/src/fs/kevent/glue.c:232:6: warning: unused variable 'x' [-Wunused-variable]
  232 |         int x;
../fs/kevent/glue.c:233:17: warning: dereference of noderef expression
/src/fs/read_write.c:1:1: warning: something that was there before
warning: unneeded `return` statement
   --> /src/rust/kernel/sync/wait.rs:579:5
    |
error[E0308]: mismatched types
  --> rust/kernel/sync/wait.rs:3:5
warning: unused import
  --> /src/rust/kernel/list.rs:3:5
/src/fs/kevent/glue.c:232:6: warning: unused variable 'x' [-Wunused-variable]
"""


class Lint(unittest.TestCase):
    def test_warnings_of_the_files_only_and_once(self):
        self.assertEqual(lint.warnings(TEXT, "/src", ["fs/kevent/glue.c",
                                                      "rust/kernel/sync/wait.rs"]), [
            "fs/kevent/glue.c:232: warning: unused variable 'x' [-Wunused-variable]",
            "fs/kevent/glue.c:233: warning: dereference of noderef expression",
            "rust/kernel/sync/wait.rs:579: warning: unneeded `return` statement",
            "rust/kernel/sync/wait.rs:3: error[E0308]: mismatched types",
        ])

    def test_objects_that_the_tests_kernel_has(self):
        self.assertEqual(lint.objects([
            "fs/kevent/glue.c", "fs/kevent/syscalls.c", "fs/kevent/queue.rs", "fs/open.c",
            "include/linux/kevent.h", "rust/helpers/fs.c", "tools/testing/selftests/kevent/abi.c",
        ]), ["fs/kevent/", "fs/open.o"])


if __name__ == "__main__":
    unittest.main()

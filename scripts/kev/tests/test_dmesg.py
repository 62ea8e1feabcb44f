# SPDX-License-Identifier: GPL-2.0
"""The kernel log scanner: a good log passes; a bad, cut or missing one does not."""

import unittest

from kev import dmesg

RELEASE, MARKER = "7.3.4-kevent", "kevent-test-end-0123"
GOOD = """\
[    0.000000] Linux version 7.3.4-kevent (kevent@kevent) (clang version 22.1.8) #1 SMP
[    0.000000] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
[    0.000000] kasan: KernelAddressSanitizer initialized
[    0.000000] rcu: RCU event tracing is enabled.
[    0.100000] kmemleak: Kernel memory leak detector initialized (mem pool available: 15636)
[    1.595572] virtme-ng-init: WARNING: failed to run: "systemd-tmpfiles" --create
[    1.505243] overlayfs: ...falling back to redirect_dir=nofollow.
[    3.336955] kevent-test-end-0123
"""
SPLATS = """\
WARNING: CPU: 1 PID: 80 at fs/kevent/main.rs:12 kevent_ctl+0x10/0x20
WARNING: possible recursive locking detected
WARNING: suspicious RCU usage
WARNING: fs/kevent/stub.c:5 at kevent_ctl+0x10/0x20, CPU#1: abi/80
BUG: kernel NULL pointer dereference, address: 0000000000000000
BUG: KASAN: slab-use-after-free in kevent_release+0x8/0x20
BUG: sleeping function called from invalid context at kernel/locking/mutex.c:5
Oops: 0000 [#1] SMP
Call Trace:
rust_kernel: panicked at fs/kevent/ring.rs:7:5
UBSAN: array-index-out-of-bounds in fs/file.c:4:2
INFO: task abi:80 blocked for more than 120 seconds.
INFO: possible circular locking dependency detected
rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)
refcount_t: underflow; use-after-free.
watchdog: BUG: soft lockup - CPU#0 stuck for 22s!
list_add corruption. prev->next should be next
Kernel panic - not syncing: Fatal exception
""".splitlines()


class DmesgTest(unittest.TestCase):
    def test_good_log(self):
        self.assertEqual(dmesg.problems(GOOD, RELEASE, MARKER), [])

    def test_each_splat_is_found(self):
        for splat in SPLATS:
            text = GOOD + f"[    4.000000] {splat}\n"
            self.assertEqual(len(dmesg.problems(text, RELEASE, MARKER)), 1, splat)

    def test_log_that_could_not_be_read(self):
        self.assertTrue(dmesg.problems("", RELEASE, MARKER))

    def test_log_without_its_beginning_or_end(self):
        for cut in (GOOD.split("\n", 1)[1], GOOD.replace(MARKER, "")):
            self.assertEqual(len(dmesg.problems(cut, RELEASE, MARKER)), 1)

    def test_log_of_another_kernel(self):
        self.assertTrue(dmesg.problems(GOOD, "7.3.4", MARKER))


if __name__ == "__main__":
    unittest.main()

# SPDX-License-Identifier: GPL-2.0
"""The command lines of scripts/demo, test, bench, shell and series."""

import argparse
import sys

from kev import arch, bench, boot, build, config, demo, each, series, test, ui, where

EPILOG = f"""\
Everything is kept in one folder: {config.CACHE} (set KEVENT_CACHE to move it).
KEVENT_TREE=PATH, or a version, is the same as --tree."""


def parser(verb, text, tree=True, icount=True, machine=arch.X86_64):
    result = argparse.ArgumentParser(
        prog=f"scripts/{verb}", description=text, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    if tree:
        add_tree(result)
    if icount:
        result.add_argument("--icount", action="store_true",
                            help="one CPU, and guest time counts instructions (QEMU -icount)")
        add_arch(result, machine)
    return result


def architecture(name):
    if name not in arch.ALL:
        raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(arch.ALL)}")
    return arch.ALL[name]


def add_arch(result, default):
    result.add_argument("--arch", metavar="{" + ",".join(arch.ALL) + "}", type=architecture,
                        default=default, help="the architecture of the kernel"
                        + (f"; {default.name} if not given" if default else ""))


def positive(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def add_tree(result):
    result.add_argument("--tree", metavar="PATH|VERSION",
                        help="a pristine Linux source tree (only read) to use as the base, or "
                             "which version of Linux, such as 7.2")


def main_demo(arguments):
    p = parser("demo", "Build the patched kernel, boot it, run the demo on real TCP connections.")
    p.add_argument("arguments", nargs="*", help="passed on to kevent-demo (after --)")
    args = p.parse_args(arguments)
    return demo.command(args, build.patched(args.tree, machine=args.arch))


def main_test(arguments):
    p = parser("test", "Run the tests. The last line printed is 'N passed, N failed'.\n"
               "The steps that take long are left out unless they are asked for. With --arch,\n"
               "only steps that build for that architecture.", machine=None)
    p.add_argument("steps", nargs="*", metavar="STEP", help="only these steps (see --list)")
    p.add_argument("--list", action="store_true", help="list the steps")
    p.add_argument("--long", action="store_true", help="all steps, with those that take long")
    p.add_argument("--debug", action="store_true",
                   help="only the selftests in a kernel with KASAN, lockdep and kmemleak, which "
                        f"takes long (the same as the steps {', '.join(test.DEBUG_STEPS)})")
    p.add_argument("--repeat", metavar="N", type=positive, default=1,
                   help="run the selftests N times, each in a boot of its own, and count each run")
    return test.command(p.parse_args(arguments))


def main_bench(arguments):
    p = parser("bench", "Count what kevent, epoll, io_uring and Linux AIO cost, in guest\n"
               "instructions, side by side in one boot.", icount=False)
    p.add_argument("--json", metavar="FILE", help="write the rows there, too")
    p.add_argument("--idle", metavar="N", type=positive, default=bench.IDLE,
                   help=f"up to so many idle sources, a power of ten; {bench.IDLE} if not given, "
                        "1000000 takes minutes and 5 GB of memory")
    p.add_argument("--baseline", action="store_true",
                   help="make these rows what scripts/test bench compares with")
    p.add_argument("--inline", action="store_true",
                   help="in a kernel with CONFIG_RUST_INLINE_HELPERS=y (builds one more)")
    p.add_argument("--others", action="store_true",
                   help="instead: what programs that do not use it pay for it, in kernels with "
                        "and without the series (builds three more)")
    p.add_argument("--native", action="store_true",
                   help="instead: the ring beside others, with threads on this machine's CPUs")
    p.add_argument("--where", action="store_true",
                   help="instead: which functions, and which instructions, an event and a change "
                        "consist of")
    args = p.parse_args(arguments)
    return where.command(args) if args.where else bench.command(args)


def main_shell(arguments):
    args = parser("shell", "An interactive guest with the patched kernel.").parse_args(arguments)
    return boot.shell(build.patched(args.tree, machine=args.arch), args.icount)


def main_series(arguments):
    p = parser("series", "The patch series: patches/ on the pristine base, with the files of\n"
               "rust/ and selftests/ in it.", tree=False, icount=False)
    verbs = p.add_subparsers(metavar="VERB", required=True)

    def verb(name, function, text):
        sub = verbs.add_parser(name, help=text, description=text, epilog=EPILOG,
                               formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(function=function)
        add_tree(sub)
        return sub

    sub = verb("apply", series.command_apply, "git am the patches to a work tree (branch kevent)")
    sub.add_argument("dir", nargs="?", metavar="DIR", help="the work tree; default in the cache")
    sub.add_argument("--force", action="store_true", help="throw away what is not in patches/")
    sub = verb("regen", series.command_regen,
               "write patches/ again, with the files of rust/ and selftests/")
    sub.add_argument("dir", nargs="?", metavar="DIR", help="the work tree; default in the cache")
    sub.add_argument("--add", action="append", default=[], metavar="FILE=NUMBER",
                     help="a new file, and the number of the patch that is to add it")
    sub.add_argument("--from-tree", action="store_true",
                     help="take the commits of the work tree instead of patches/")
    sub.add_argument("--take", choices=["tree", "checkout"],
                     help="with --from-tree: whose version of new files to keep, where both differ")
    sub = verb("check", series.command_check, "prove that patches/ and the files are the same")
    sub.add_argument("--base", metavar="VERSION",
                     help="only: does the series apply to this Linux version?")
    sub = verb("each", each.command,
               "build and boot every patch with CONFIG_KEVENT=y and =n (takes long)")
    sub.add_argument("--again", action="store_true",
                     help="those, too, that an earlier run built and booted well")
    add_arch(sub, arch.X86_64)
    args = p.parse_args(arguments)
    return args.function(args)


def main():
    verb, *arguments = sys.argv[1:] or ["?"]
    mains = {"demo": main_demo, "test": main_test, "bench": main_bench, "shell": main_shell,
             "series": main_series}
    if verb not in mains:
        ui.say("call scripts/demo, test, bench, shell or series")
        return 2
    try:
        return mains[verb](arguments)
    except ui.Failure as failure:
        print(f"\n{failure}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

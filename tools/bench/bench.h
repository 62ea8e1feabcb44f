/* SPDX-License-Identifier: MIT */
/*
 * What the files of the benchmark share: system calls without a wrapper, the
 * clock that counts instructions, the sources of events, and the back-ends.
 *
 * x86-64 only.  Under QEMU's -icount shift=0, with one CPU, the time stamp
 * counter is the number of guest instructions that were executed.
 */
#ifndef KEVENT_BENCH_H
#define KEVENT_BENCH_H

#include <stdbool.h>
#include <stddef.h>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define __NR_kevent_init 473
#define __NR_kevent_ctl 474
#define __NR_kevent_getevents 475

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static __always_inline long call6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long ret;

	asm volatile("syscall" : "=a"(ret)
		     : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
}

static __always_inline long call4(long nr, long a, long b, long c, long d)
{
	register long r10 asm("r10") = d;
	long ret;

	asm volatile("syscall" : "=a"(ret) : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
		     : "rcx", "r11", "memory");
	return ret;
}

static __always_inline long call3(long nr, long a, long b, long c)
{
	long ret;

	asm volatile("syscall" : "=a"(ret) : "0"(nr), "D"(a), "S"(b), "d"(c)
		     : "rcx", "r11", "memory");
	return ret;
}

/* The lower half is enough: what is measured takes less than 2^32. */
static __always_inline u32 now(void)
{
	u32 low;

	asm volatile("rdtsc" : "=a"(low) : : "rdx", "memory");
	return low;
}

void die(const char *what, long error) __attribute__((noreturn, cold));

/* Ends the program with a message if @ok is false. */
#define must(ok, what, error) do {			\
	if (__builtin_expect(!(ok), 0))			\
		die(what, error);			\
} while (0)

/*
 * Sources of events: number i is read from sources[i].r and written to
 * sources[i].w.
 */
struct source {
	int r, w;
};

enum kind { EVENTFD, PIPE, SOCKET, TCP };

extern struct source *sources;
/* What is written, and a place for what is read. */
extern u64 one, scratch;

static __always_inline void write_to(unsigned int i)
{
	call3(1, sources[i].w, (long)&one, sizeof(one));
}

static __always_inline void read_from(unsigned int i)
{
	call3(0, sources[i].r, (long)&scratch, sizeof(scratch));
}

/*
 * A back-end.  Sources are named by their numbers, which are also what is handed
 * back with an event.  There are at most @max of them.
 */
struct peer {
	const char *name;
	/* What is reported must be registered again. */
	bool one_shot;
	/* Returns false if this kernel does not have it. */
	bool (*open)(unsigned int max);
	void (*close)(void);
	/* Registers, modifies, unregisters @n sources, those from @first on. */
	void (*add)(unsigned int first, unsigned int n);
	void (*modify)(unsigned int first, unsigned int n);
	void (*del)(unsigned int first, unsigned int n);
	/*
	 * Collects @want events, which have happened, and leaves their sources'
	 * numbers in collected[].
	 */
	void (*collect)(unsigned int want);
	/* The same, and counts what is spent in the kernel, see below. */
	void (*collect_split)(unsigned int want);
	/* Collects what there is, without waiting, up to @max events. */
	unsigned int (*look)(unsigned int max);
};

extern const struct peer kevent_ring, kevent_call, kevent_level, epoll_level, epoll_edge,
	uring_default, uring_defer, aio_poll;

#define COLLECT_MAX 1024
extern u32 collected[COLLECT_MAX];

/* By collect_split(): instructions in the kernel with those around; system calls. */
struct spent {
	u32 kernel;
	u32 calls;
};

extern struct spent spent;

/* The queue of kevent_ring, kevent_call and kevent_level, and its kevent_ctl() */
int kevent_queue(void);
long kevent_ctl(void *changes, unsigned int nr);
/* The next entry to submit, all zero; and the submission of all that there are. */
struct io_uring_sqe *uring_sqe(void);
void uring_submit(void);

#endif

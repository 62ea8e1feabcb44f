// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: a fuzzer.  Random sequences of the three calls, most of them almost
 * right, some with arguments that make no sense, and of what happens to the
 * sources and to the ring meanwhile.  What is looked for is a report of the
 * kernel, an error that is not documented, and harm done to another queue.
 *
 * A sequence is a list of numbers, each of which says all of one step.  If the
 * kernel has CONFIG_KCOV, with fs/kevent instrumented, sequences that reach
 * something new are kept, and others are made of them.
 *
 * KEVENT_FUZZ_CALLS=N	how many calls are made with arguments that make no sense,
 *			and a tenth of it in sequences, by each test; by default few
 * KEVENT_SEED=N	the same sequences again, as far as coverage is the same
 * KEVENT_FUZZ_TRACE=1	each sequence is written to the kernel's log before it is
 *			run, so that the last one is known when the kernel dies
 * KEVENT_FUZZ_RUN=A,B,..  this sequence, over and over
 */
#include "kevent_util.h"

#include <limits.h>
#include <linux/kcov.h>
#include <sys/ioctl.h>

#define DEFAULT_CALLS	40000
#define MAX_STEPS	128
#define MAX_KEPT	512

/*
 * The world in which a sequence runs
 */

#define QUEUES	4
#define FILES	8

struct world {
	int queues[QUEUES];
	int files[FILES];
	int epoll;
	int regular;
};

#if __SIZEOF_POINTER__ == 8
#define ARENA	0x100000000000UL
#else
#define ARENA	0
#endif

/* The memory that arguments are in: each page has another kind of end behind it. */
struct arena {
	unsigned char *mem;	/* followed by nothing */
	unsigned char *fixed;	/* read-only */
	unsigned char *slots;	/* of a ring, or NULL */
	size_t page;
	unsigned char *at;	/* the next free byte of mem */
};

struct fuzzer {
	struct world *world;
	struct arena arena;
	bool alone;		/* nobody else is in the world */
	__u64 calls;
	__u64 ok;		/* of them */
	char wrong[256];	/* the first thing that should not have been */
};

static int open_file(int i)
{
	int fds[2];

	if (i < FILES / 2)
		return open_eventfd();
	/* A pipe that is full of nothing, or has come to its end */
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC))
		return -1;
	close(fds[i & 1]);
	return fds[!(i & 1)];
}

static int open_queue(__u32 slots, __u32 flags)
{
	struct kevent_params params = { .slots = slots, .flags = flags };

	return sys_kevent_init(&params, sizeof(params));
}

static void world_begin(struct world *w)
{
	w->queues[0] = open_queue(4, 0);
	w->queues[1] = open_queue(2, KEVENT_INIT_OVERCOMMIT);
	w->queues[2] = -1;
	w->queues[3] = -1;
}

static void world_end(struct world *w)
{
	for (int i = 0; i < QUEUES; i++)
		if (w->queues[i] >= 0)
			close(w->queues[i]);
}

static bool world_open(struct world *w)
{
	bool ok = true;

	for (int i = 0; i < FILES; i++) {
		w->files[i] = open_file(i);
		ok = ok && w->files[i] >= 0;
	}
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	w->regular = memfd_create("regular", MFD_CLOEXEC);
	return ok && w->epoll >= 0 && w->regular >= 0;
}

static bool arena_open(struct arena *a)
{
	a->page = sysconf(_SC_PAGESIZE);
	/* Far from all else, so that what is wrong by a bit does no harm */
	a->mem = mmap((void *)ARENA, 4 * a->page, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (a->mem == MAP_FAILED)
		return false;
	a->fixed = a->mem + 2 * a->page;
	a->slots = NULL;
	return !mprotect(a->mem + a->page, a->page, PROT_NONE) &&
	       !mprotect(a->fixed, a->page, PROT_READ) &&
	       !mprotect(a->fixed + a->page, a->page, PROT_NONE);
}

/*
 * Random numbers of one step
 */

struct step {
	struct fuzzer *f;
	__u64 state;
};

static __u64 any(struct step *s)
{
	return next_random(&s->state);
}

static __u32 below(struct step *s, __u32 n)
{
	return (any(s) >> 16) % n;
}

static bool one_in(struct step *s, __u32 n)
{
	return !below(s, n);
}

/* A number that is at some end of something */
static __u64 edge(struct step *s)
{
	static const __u64 edges[] = {
		0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 255, 4095, 4096, 65535, 65536,
		65537, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
		0x1ffffff, 0x2000000, LLONG_MAX, 1ULL << 63, ~0ULL,
	};

	switch (below(s, 4)) {
	case 0:
		return any(s);
	case 1:
		return 1ULL << below(s, 64);
	default:
		return edges[below(s, ARRAY_SIZE(edges))];
	}
}

/* An address that is none of the program's */
static void *nowhere(struct step *s)
{
	__u64 p = edge(s);

	/* There are not many in a 32-bit program. */
	if (sizeof(long) == 4)
		p = p & 1 ? p & 0xffff : p | 0xfffff000;
	return (void *)(uintptr_t)p;
}

static int some_fd(struct step *s)
{
	struct world *w = s->f->world;

	switch (below(s, 16)) {
	case 0:
		return w->queues[below(s, QUEUES)];
	case 1:
		return w->epoll;
	case 2:
		return w->regular;
	case 3:
		return edge(s);
	default:
		return w->files[below(s, FILES)];
	}
}

static int some_queue(struct step *s)
{
	if (one_in(s, 64))
		return some_fd(s);
	return s->f->world->queues[one_in(s, 8) ? below(s, QUEUES) : below(s, 2)];
}

/* Memory for an argument; @size of it may not be there */
static void *some_memory(struct step *s, size_t size)
{
	struct arena *a = &s->f->arena;
	unsigned char *p = a->at;

	if (p + size > a->mem + a->page)
		p = a->mem;
	a->at = p + (size + 7) / 8 * 8;
	return p;
}

/* Where @p is, as a rule; else, where it cannot be, or what is something else */
static void *some_pointer(struct step *s, void *p)
{
	struct arena *a = &s->f->arena;

	if (!one_in(s, 24))
		return p;
	switch (below(s, 8)) {
	case 0:
		return NULL;
	case 1:
		return nowhere(s);
	case 2:
		return a->mem + a->page - below(s, 256);
	case 3:
		return a->fixed + below(s, 16);
	case 4:
		return a->fixed + a->page - below(s, 256);
	case 5:
		return a->slots ?: p;
	case 6:
		return (unsigned char *)p + 1 + below(s, 7);
	default:
		return (void *)(uintptr_t)(0 - (uintptr_t)below(s, 4096));
	}
}

/*
 * Changes
 */

static __u32 some_mode(struct step *s)
{
	static const __u32 modes[] = {
		0, 0, 0, KEVENT_ONESHOT, KEVENT_DISPATCH, KEVENT_DISABLED,
		KEVENT_EXCLUSIVE, KEVENT_EXCLUSIVE | KEVENT_ROUND_ROBIN,
		KEVENT_ALWAYS_READY, KEVENT_ONESHOT | KEVENT_DISABLED,
	};

	return modes[below(s, ARRAY_SIZE(modes))] |
	       (one_in(s, 4) ? KEVENT_LEVEL : KEVENT_EDGE);
}

static __u64 some_ns(struct step *s)
{
	return one_in(s, 4) ? edge(s) : below(s, 200000);
}

static void make_change(struct step *s, struct ukevent *c)
{
	__u64 *words = (__u64 *)c;
	bool set;

	memset(c, 0, sizeof(*c));
	c->source = one_in(s, 24) ? KEVENT_SOURCE_QUEUE : 1 + below(s, 3);
	c->op = one_in(s, 3) ? KEVENT_OP_ADD : 1 + below(s, 8);
	c->tag = one_in(s, 8) ? below(s, 3) : 0;
	c->ident = c->source == KEVENT_SOURCE_FD ? (__u64)some_fd(s) : below(s, 4);
	set = c->op == KEVENT_OP_ADD || c->op == KEVENT_OP_MOD || c->op == KEVENT_OP_SET;
	if (set) {
		c->flags = some_mode(s);
		c->user_data = any(s);
	}
	if (c->op == KEVENT_OP_MOVE)
		c->data = some_queue(s);
	switch (c->source) {
	case KEVENT_SOURCE_QUEUE:
		c->op = one_in(s, 2) ? KEVENT_OP_WAKE : KEVENT_OP_GROW;
		c->ident = 0;
		c->tag = 0;
		c->flags = 0;
		c->user_data = 0;
		c->data = c->op == KEVENT_OP_WAKE ? 0 :
			  1 << below(s, one_in(s, 32) ? 18 : 6);
		break;
	case KEVENT_SOURCE_FD:
		if (set)
			c->events = one_in(s, 8) ? (__u32)edge(s) :
						   below(s, 32) & ~2;
		break;
	case KEVENT_SOURCE_TIMER:
		if (!set)
			break;
		c->fflags = "\0\1\7\013"[below(s, 4)];
		c->fflags |= below(s, 4) << 8;
		c->data = some_ns(s);
		c->interval = one_in(s, 2) ? some_ns(s) : 0;
		c->flags &= KEVENT_ONESHOT | KEVENT_DISPATCH | KEVENT_DISABLED;
		c->flags |= KEVENT_EDGE;
		break;
	case KEVENT_SOURCE_USER:
		if (set) {
			c->events = 1 + below(s, 2);
			c->fflags = c->events == KEVENT_USER_FLAGS ? below(s, 8) : 0;
			c->flags &= KEVENT_ONESHOT | KEVENT_DISPATCH | KEVENT_DISABLED;
			c->flags |= KEVENT_EDGE;
		} else if (one_in(s, 2)) {
			c->op = KEVENT_OP_TRIGGER;
			if (one_in(s, 2))
				c->data = one_in(s, 4) ? edge(s) : 1 + below(s, 9);
			else
				c->fflags = below(s, 4) << 30 | below(s, 2) << 24 |
					    below(s, 16);
		}
		break;
	}
	/* One thing is not as it should be. */
	if (one_in(s, 16))
		words[below(s, 8)] ^= one_in(s, 2) ? edge(s) : 1ULL << below(s, 64);
}

static struct ukevent *make_changes(struct step *s, unsigned int *nr)
{
	unsigned int n = one_in(s, 3) ? 1 + below(s, 6) : 1;
	struct ukevent *changes = some_memory(s, n * sizeof(*changes));

	for (unsigned int i = 0; i < n; i++)
		make_change(s, &changes[i]);
	*nr = one_in(s, 64) ? (unsigned int)edge(s) : n;
	return changes;
}

static __u32 some_flags(struct step *s, __u32 known)
{
	return one_in(s, 32) ? (__u32)edge(s) : (__u32)any(s) & known;
}

/*
 * The calls
 */

static void wrong(struct fuzzer *f, const char *what, int ret, unsigned int limit)
{
	if (!f->wrong[0])
		snprintf(f->wrong, sizeof(f->wrong), "%s returned %d, limit %u",
			 what, ret, limit);
}

static bool is_one_of(int err, const int *errs)
{
	while (*errs && *errs != err)
		errs++;
	return *errs;
}

static void called(struct fuzzer *f, const char *what, int ret, unsigned int limit,
		   const int *errs)
{
	f->calls++;
	f->ok += ret >= 0;
	if (ret < 0 ? !is_one_of(-ret, errs) : (unsigned int)ret > limit)
		wrong(f, what, ret, limit);
}

static void do_init(struct step *s)
{
	static const int errs[] = { EINVAL, E2BIG, EFAULT, EMFILE, ENFILE, ENOMEM, 0 };
	struct kevent_params *p = some_memory(s, sizeof(*p));
	size_t size = one_in(s, 8) ? (size_t)edge(s) : sizeof(*p);
	int *queue, fd;

	memset(p, 0, sizeof(*p));
	p->slots = one_in(s, 16) ? (__u32)edge(s) : 1 + below(s, 64);
	p->flags = some_flags(s, KEVENT_INIT_OVERCOMMIT | KEVENT_INIT_LIFO |
				 KEVENT_INIT_NODE);
	if (p->flags & KEVENT_INIT_NODE)
		p->node = one_in(s, 4) ? (__u32)edge(s) : below(s, 2);
	if (one_in(s, 16))
		((__u64 *)p)[below(s, 6)] ^= edge(s);
	fd = sys_kevent_init(some_pointer(s, p), size);
	called(s->f, "kevent_init()", fd, INT_MAX, errs);
	if (fd < 0)
		return;
	queue = &s->f->world->queues[2 + below(s, 2)];
	fd = __atomic_exchange_n(queue, fd, __ATOMIC_RELAXED);
	if (fd >= 0)
		close(fd);
}

/* Of changes, and so of both calls */
static const int change_errs[] = {
	EBADF, EINVAL, EFAULT, EDQUOT, EEXIST, ELOOP, ENOENT, ENOMEM, ENOSPC, EPERM, 0
};

static void do_ctl(struct step *s)
{
	unsigned int nr;
	struct ukevent *changes = make_changes(s, &nr);
	__u32 flags = some_flags(s, one_in(s, 4) ? KEVENT_CTL_RESULTS : 0);
	int ret = sys_kevent_ctl(some_queue(s), some_pointer(s, changes), nr, flags);

	called(s->f, "kevent_ctl()", ret, nr, change_errs);
}

/*
 * Waits that have no end are ended by the waker, which knows all queues there are;
 * but it does not if others close them meanwhile.
 */
static void make_timeout(struct step *s, struct __kernel_timespec *ts)
{
	ts->tv_sec = 0;
	ts->tv_nsec = one_in(s, 4) ? below(s, 20000) : 0;
	if (one_in(s, 16) && s->f->alone)
		ts->tv_sec = edge(s);
	if (one_in(s, 16))
		ts->tv_nsec = edge(s);
}

static struct kevent_getopts *make_opts(struct step *s)
{
	size_t size = one_in(s, 16) ? below(s, 1024) : sizeof(struct kevent_getopts);
	struct kevent_getopts *o = some_memory(s, size > sizeof(*o) ? size : sizeof(*o));

	memset(o, 0, sizeof(*o));
	o->size = one_in(s, 64) ? (__u32)edge(s) : size;
	if (one_in(s, 2)) {
		__u32 nr;

		o->changes = (uintptr_t)some_pointer(s, make_changes(s, &nr));
		o->nr_changes = nr;
		o->change_flags = some_flags(s, KEVENT_CTL_RESULTS);
	}
	if (one_in(s, 4)) {
		__u64 *mask = some_memory(s, sizeof(*mask));

		*mask = any(s);
		o->sigmask = (uintptr_t)some_pointer(s, mask);
		o->sigsetsize = one_in(s, 16) ? (__u32)edge(s) : sizeof(*mask);
	}
	if (one_in(s, 4)) {
		o->flags = KEVENT_GET_ABSTIME;
		o->clock = one_in(s, 16) ? (__u32)edge(s) : "\0\1\7\013"[below(s, 4)];
	}
	if (one_in(s, 4))
		o->min_wait = some_ns(s);
	if (one_in(s, 32)) {
		__u64 *word = (__u64 *)o + below(s, 8);

		if (sizeof(long) == 8 || (word != &o->sigmask && word != &o->changes))
			*word ^= edge(s);
	}
	return o;
}

static void do_getevents(struct step *s)
{
	unsigned int max = one_in(s, 4) ? 0 : 1 + below(s, 16);
	unsigned int min = one_in(s, 3) ? below(s, 4) : 0;
	struct __kernel_timespec *ts = some_memory(s, sizeof(*ts));
	struct kevent_getopts *opts = one_in(s, 3) ? make_opts(s) : NULL;
	struct ukevent *evs = max ? some_memory(s, max * sizeof(*evs)) : NULL;
	struct ukevent *place;
	int ret;

	make_timeout(s, ts);
	if (min > max && max)
		min = max;
	if (one_in(s, 32))
		min = edge(s);
	if (one_in(s, 64))
		max = edge(s);
	place = some_pointer(s, evs);
	if (s->f->alone)
		ts = one_in(s, 64) ? NULL : some_pointer(s, ts);
	ret = sys_kevent_getevents(some_queue(s), place, min, max, ts,
				   some_pointer(s, opts));
	called(s->f, "kevent_getevents()", ret == -EINTR || ret == -E2BIG ? 0 : ret,
	       max ?: min, change_errs);
	/* What is copied has nothing in the fields that say nothing. */
	if (place == evs && s->f->alone)
		for (int i = 0; i < ret && max && i < 16; i++)
			if (!evs[i].events || evs[i].op || evs[i].result ||
			    evs[i].data || evs[i].fflags || evs[i].interval ||
			    evs[i].resv)
				wrong(s->f, "an event", i, 0);
}

/* What becomes of it is not looked at, further than that it is survived. */
static void do_without_sense(struct step *s)
{
	void *p = one_in(s, 2) ? nowhere(s) : some_pointer(s, some_memory(s, 512));
	void *q = one_in(s, 2) ? nowhere(s) : some_memory(s, 16);
	void *r = one_in(s, 2) ? nowhere(s) : NULL;
	int fd = one_in(s, 2) ? some_queue(s) : some_fd(s);
	__u64 a = edge(s), b = edge(s);
	int ret;

	switch (below(s, 3)) {
	case 0:
		ret = sys_kevent_init(p, a);
		if (ret >= 0)
			close(ret);
		break;
	case 1:
		ret = sys_kevent_ctl(fd, p, a, one_in(s, 2) ? b : b & 1);
		break;
	default:
		ret = sys_kevent_getevents(fd, p, a, b, q, r);
	}
	s->f->calls++;
	s->f->ok += ret >= 0;
}

/*
 * What else happens
 */

static void happen(struct step *s)
{
	struct world *w = s->f->world;
	struct arena *a = &s->f->arena;
	int i = below(s, FILES), fd;
	char c[64] = "";

	switch (below(s, 8)) {
	case 0:
	case 1:
		signal_eventfd(w->files[below(s, FILES / 2)]);
		break;
	case 2:
		if (read(w->files[i], c, sizeof(c)) < 0)
			(void)!write(w->files[i], c, sizeof(c));
		break;
	case 3:		/* the descriptor is closed, or replaced */
		fd = open_file(i);
		if (fd >= 0) {
			dup2(fd, w->files[i]);
			close(fd);
		}
		break;
	case 4:
		if (a->slots) {
			munmap(a->slots, a->page);
			a->slots = NULL;
		} else {
			a->slots = mmap(NULL, a->page, PROT_READ | PROT_WRITE,
					MAP_SHARED, w->queues[below(s, QUEUES)],
					KEVENT_OFF_SLOTS(1ULL << below(s, 8)));
			if (a->slots == MAP_FAILED)
				a->slots = NULL;
		}
		break;
	case 5:		/* a claim, honest or not */
	case 6:
		if (a->slots) {
			struct kevent_slot *slot = (void *)a->slots;
			__u64 word;

			slot += below(s, 8);
			word = kevent_slot_word(slot);
			if (one_in(s, 2))
				word = KEVENT_WORD_CLAIMED(word);
			else
				word ^= edge(s);
			__atomic_store_n(&slot->word, word, __ATOMIC_RELEASE);
		}
		break;
	default: {
		char path[64];

		if (!one_in(s, 8))
			break;
		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", some_queue(s));
		fd = open(path, O_RDONLY | O_CLOEXEC);
		while (read(fd, c, sizeof(c)) > 0)
			;
		if (fd >= 0)
			close(fd);
	}
	}
}

/*
 * Sequences
 */

struct sequence {
	int len;
	__u64 steps[MAX_STEPS];
};

static void run_step(struct fuzzer *f, __u64 number)
{
	struct step s = { f, number * 0x9e3779b97f4a7c15ULL | 1 };
	__u32 what;

	any(&s);
	what = below(&s, 100);
	if (what < 52)
		do_ctl(&s);
	else if (what < 84)
		do_getevents(&s);
	else if (what < 86)
		do_init(&s);
	else if (what < 88 && f->alone)
		do_without_sense(&s);
	else
		happen(&s);
}

static void run_sequence(struct fuzzer *f, const struct sequence *q)
{
	struct arena *a = &f->arena;

	if (f->alone)
		world_begin(f->world);
	a->at = a->mem;
	for (int i = 0; i < q->len; i++)
		run_step(f, q->steps[i]);
	if (a->slots)
		munmap(a->slots, a->page);
	a->slots = NULL;
	if (f->alone)
		world_end(f->world);
}

static void new_sequence(struct sequence *q, __u64 *random)
{
	q->len = 4 + next_random(random) % (MAX_STEPS - 4);
	for (int i = 0; i < q->len; i++)
		q->steps[i] = next_random(random) >> 32;
}

/* One step is put in, or taken out, or changed; or half of it is another's. */
static void mutate(struct sequence *q, const struct sequence *other, __u64 *random)
{
	for (int n = 1 + next_random(random) % 3; n; n--) {
		__u64 rnd = next_random(random);
		int at = (rnd >> 8) % q->len;

		switch (rnd % 4) {
		case 0:
			if (q->len == MAX_STEPS)
				break;
			memmove(&q->steps[at + 1], &q->steps[at],
				(q->len - at) * sizeof(q->steps[0]));
			q->steps[at] = rnd >> 32;
			q->len++;
			break;
		case 1:
			if (q->len == 1)
				break;
			memmove(&q->steps[at], &q->steps[at + 1],
				(q->len - at - 1) * sizeof(q->steps[0]));
			q->len--;
			break;
		case 2:
			q->steps[at] = rnd >> 32;
			break;
		default:
			for (; at < other->len; at++)
				q->steps[at] = other->steps[at];
			q->len = q->len > other->len ? q->len : other->len;
		}
	}
}

#define STEPS_A_LINE 64	/* of the kernel's log, which has no longer ones */

/* As KEVENT_FUZZ_RUN wants it, if the lines are put together */
static void trace_sequence(const struct sequence *q)
{
	for (int from = 0; from < q->len; from += STEPS_A_LINE) {
		char text[STEPS_A_LINE * 12 + 32];
		int len = sprintf(text, "KEVENT_FUZZ_RUN %d: ", from);

		for (int i = from; i < q->len && i < from + STEPS_A_LINE; i++)
			len += sprintf(text + len, "%#llx,", q->steps[i]);
		write_file("/dev/kmsg", text);
	}
}

static void parse_sequence(struct sequence *q, const char *text)
{
	char *end;

	for (q->len = 0; q->len < MAX_STEPS && *text; text = end) {
		q->steps[q->len++] = strtoull(text, &end, 0);
		end += *end == ',';
		if (end == text)
			break;
	}
}

/*
 * Coverage
 */

#define COVER_WORDS	65536
#define EDGE_BITS	18

struct cover {
	unsigned long *area;		/* NULL if there is none */
	unsigned int edges;
	unsigned int points;
	unsigned char edge[1 << EDGE_BITS];
	unsigned char point[1 << EDGE_BITS];
};

/* Why there is no coverage; NULL if there is */
static const char *cover_open(struct cover *c)
{
	int fd;

	/* A number of the kernel has to be one of the program. */
	if (sizeof(long) != 8)
		return "a 32-bit program";
	fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return "no /sys/kernel/debug/kcov: no CONFIG_KCOV, or no debugfs";
	if (ioctl(fd, KCOV_INIT_TRACE, COVER_WORDS))
		return "no KCOV_INIT_TRACE";
	c->area = mmap(NULL, COVER_WORDS * sizeof(long), PROT_READ | PROT_WRITE,
		       MAP_SHARED, fd, 0);
	if (c->area == MAP_FAILED || ioctl(fd, KCOV_ENABLE, KCOV_TRACE_PC)) {
		c->area = NULL;
		return "no KCOV_ENABLE";
	}
	return NULL;
}

static void cover_begin(struct cover *c)
{
	if (c->area)
		__atomic_store_n(&c->area[0], 0, __ATOMIC_RELAXED);
}

static __u32 hash(__u64 n)
{
	return (n * 0x9e3779b97f4a7c15ULL) >> (64 - EDGE_BITS);
}

/* How many transitions there were for the first time */
static unsigned int cover_end(struct cover *c)
{
	unsigned long nr = c->area ? __atomic_load_n(&c->area[0], __ATOMIC_RELAXED) : 0;
	unsigned int fresh = 0;
	__u64 last = 0;

	for (unsigned long i = 1; i <= nr && i < COVER_WORDS; i++) {
		__u64 pc = c->area[i];
		unsigned char *edge = &c->edge[hash(pc ^ last << 20)];
		unsigned char *point = &c->point[hash(pc)];

		fresh += !*edge;
		c->points += !*point;
		*edge = 1;
		*point = 1;
		last = pc;
	}
	c->edges += fresh;
	return fresh;
}

/*
 * The tests
 */

static __u64 wanted_calls(void)
{
	const char *env = getenv("KEVENT_FUZZ_CALLS");

	return env ? strtoull(env, NULL, 0) : DEFAULT_CALLS;
}

/* Ends all waits, as some have no other end. */
struct waker {
	struct world *world;
	int stop;
};

static void *waker_fn(void *arg)
{
	struct waker *w = arg;

	while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
		for (int i = 0; i < QUEUES; i++) {
			struct kq q = {
				.fd = __atomic_load_n(&w->world->queues[i],
						      __ATOMIC_RELAXED),
			};

			kq_wake(&q);
		}
		sleep_ms(2);
	}
	return NULL;
}

/* A queue that has nothing to do with it still works. */
static bool witness_is_well(struct kq *q)
{
	struct ukevent ev;

	return kq_trigger(q, 1, 3, 0) == 1 && kq_collect(q, BY_RING, &ev, 1) == 1 &&
	       ev.events == 3 && ev.user_data == 77 && !kq_collect(q, BY_RING, &ev, 1);
}

FIXTURE(fuzz) {
	struct world world;
	struct kq witness;
	struct waker waker;
	pthread_t waker_thread;
	__u64 random;
};

FIXTURE_SETUP(fuzz)
{
	/* Pipes without a reader are written to. */
	signal(SIGPIPE, SIG_IGN);
	self->waker.world = &self->world;
	if (!kq_setup(_metadata, &self->witness, 4))
		return;
	ASSERT_EQ(1, kq_add_user(&self->witness, 1, KEVENT_USER_COUNT, 0, 77));
	ASSERT_TRUE(world_open(&self->world));
	for (int i = 0; i < QUEUES; i++)
		self->world.queues[i] = -1;
	/* Out of the way of small numbers, which are tried */
	self->witness.map.fd = fcntl(self->witness.fd, F_DUPFD_CLOEXEC, 300);
	ASSERT_LE(300, self->witness.map.fd);
	close(self->witness.fd);
	self->witness.fd = self->witness.map.fd;
	ASSERT_EQ(0, pthread_create(&self->waker_thread, NULL, waker_fn, &self->waker));
	self->random = random_seed();
}

FIXTURE_TEARDOWN(fuzz)
{
	kq_close(&self->witness);
}

static void stop_waker(struct waker *w, pthread_t thread)
{
	__atomic_store_n(&w->stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
}

/* Many calls, the most of which are refused for their arguments */
TEST_F_TIMEOUT(fuzz, arguments_without_sense_are_survived, 36000)
{
	struct fuzzer f = { .world = &self->world, .alone = true };
	struct step s = { &f, self->random };
	__u64 calls = wanted_calls();
	__s64 begin = now_ns();

	ASSERT_TRUE(arena_open(&f.arena));
	f.arena.at = f.arena.mem;
	while (f.calls < calls && !f.wrong[0]) {
		world_begin(&self->world);
		for (int i = 0; i < 4096; i++) {
			if (i % 8 == 0)
				do_ctl(&s);
			else if (i % 8 == 1)
				do_getevents(&s);
			else
				do_without_sense(&s);
		}
		world_end(&self->world);
		ASSERT_TRUE(witness_is_well(&self->witness));
	}
	EXPECT_EQ(0, f.wrong[0])
		TH_LOG("%s", f.wrong);
	TH_LOG("%llu calls, %llu without an error, %lld ms", f.calls, f.ok,
	       (now_ns() - begin) / NSEC_PER_MSEC);
	stop_waker(&self->waker, self->waker_thread);
}

/* Sequences of one thread, led by what they reach */
TEST_F_TIMEOUT(fuzz, sequences_are_survived, 36000)
{
	struct fuzzer f = { .world = &self->world, .alone = true };
	const char *run = getenv("KEVENT_FUZZ_RUN");
	bool trace = getenv("KEVENT_FUZZ_TRACE");
	struct sequence *kept = calloc(MAX_KEPT, sizeof(*kept));
	struct cover *cover = calloc(1, sizeof(*cover));
	__u64 calls = wanted_calls() / 10;
	unsigned int sequences = 0, nr_kept = 0;
	const char *why;
	__s64 begin;

	ASSERT_TRUE(kept && cover);
	ASSERT_TRUE(arena_open(&f.arena));
	why = cover_open(cover);
	begin = now_ns();
	while (f.calls < calls && !f.wrong[0]) {
		__u64 rnd = next_random(&self->random);
		struct sequence q;

		if (run) {
			parse_sequence(&q, run);
		} else if (!nr_kept || rnd % 4 == 0) {
			new_sequence(&q, &self->random);
		} else {
			q = kept[(rnd >> 8) % nr_kept];
			mutate(&q, &kept[(rnd >> 32) % nr_kept], &self->random);
		}
		if (trace)
			trace_sequence(&q);
		cover_begin(cover);
		run_sequence(&f, &q);
		if (cover_end(cover)) {
			kept[nr_kept < MAX_KEPT ? nr_kept : rnd % MAX_KEPT] = q;
			nr_kept += nr_kept < MAX_KEPT;
		}
		if (f.wrong[0])
			trace_sequence(&q);
		if (sequences++ % 64 == 0)
			ASSERT_TRUE(witness_is_well(&self->witness));
	}
	EXPECT_EQ(0, f.wrong[0])
		TH_LOG("%s; the sequence is in the kernel's log", f.wrong);
	EXPECT_TRUE(witness_is_well(&self->witness));
	TH_LOG("%llu calls, %llu without an error, %u sequences, %lld ms", f.calls, f.ok,
	       sequences, (now_ns() - begin) / NSEC_PER_MSEC);
	if (why)
		TH_LOG("no coverage: %s", why);
	else
		TH_LOG("coverage: %u points, %u transitions, %u sequences kept",
		       cover->points, cover->edges, nr_kept);
	stop_waker(&self->waker, self->waker_thread);
}

#define THREADS 3

struct thread {
	struct fuzzer f;
	pthread_t thread;
	__u64 random;
	__u64 calls;
};

static void *thread_fn(void *arg)
{
	struct thread *t = arg;

	while (t->f.calls < t->calls && !t->f.wrong[0]) {
		struct sequence q;

		new_sequence(&q, &t->random);
		run_sequence(&t->f, &q);
	}
	return NULL;
}

/* Several at once, in one world */
TEST_F_TIMEOUT(fuzz, calls_of_several_threads_are_survived, 36000)
{
	struct thread *threads = calloc(THREADS, sizeof(*threads));
	__u64 calls = 0, ok = 0;
	__s64 begin = now_ns();

	ASSERT_NE(NULL, threads);
	world_begin(&self->world);
	for (int i = 0; i < THREADS; i++) {
		struct thread *t = &threads[i];

		t->f.world = &self->world;
		t->random = next_random(&self->random);
		t->calls = wanted_calls() / 10 / THREADS;
		ASSERT_TRUE(arena_open(&t->f.arena));
		ASSERT_EQ(0, pthread_create(&t->thread, NULL, thread_fn, t));
	}
	for (int i = 0; i < THREADS; i++) {
		struct thread *t = &threads[i];

		pthread_join(t->thread, NULL);
		EXPECT_EQ(0, t->f.wrong[0])
			TH_LOG("%s", t->f.wrong);
		calls += t->f.calls;
		ok += t->f.ok;
	}
	EXPECT_TRUE(witness_is_well(&self->witness));
	TH_LOG("%llu calls, %llu without an error, %lld ms", calls, ok,
	       (now_ns() - begin) / NSEC_PER_MSEC);
	stop_waker(&self->waker, self->waker_thread);
	world_end(&self->world);
}

TEST_HARNESS_MAIN

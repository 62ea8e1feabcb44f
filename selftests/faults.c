// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: calls that come to grief halfway.  Memory that is not to be had,
 * arguments that cannot be copied, in each place where that can happen.  A call
 * either does what it says or changes nothing, and events that could not be
 * copied are still there.
 *
 * What a call has done is found out by doing it again: a world of queues and
 * sources is made twice.  In one of them the call is made, with a fault; in the
 * other, without, those of its changes that it said were applied.  Then all that
 * can be seen of the two worlds has to be the same.
 *
 * Faults are injected by /proc/PID/fail-nth, which needs CONFIG_FAULT_INJECTION
 * and CONFIG_FAILSLAB, _FAIL_PAGE_ALLOC and _FAULT_INJECTION_USERCOPY, and
 * CONFIG_FAULT_INJECTION_DEBUG_FS to be set up.  What is done with holes in
 * memory needs nothing.
 */
#include "kevent_util.h"

#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#define SLOTS	8

/* A user who has no registrations but those of the test, and how many at most */
#define UID	54324
#define QUOTA	24
#define LIMIT_FILE "/proc/sys/fs/kevent/max_user_registrations"

#define MAX_CHANGES 4
#define MAX_EVENTS 8

/*
 * Text: all that can be seen of something
 */

struct text {
	size_t len;
	char s[16384];
};

static __printf(2, 3) void say(struct text *t, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	t->len += vsnprintf(t->s + t->len, sizeof(t->s) - t->len, fmt, ap);
	va_end(ap);
	if (t->len >= sizeof(t->s))
		abort();
}

static void say_file(struct text *t, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = -1;

	while (fd >= 0) {
		n = read(fd, t->s + t->len, sizeof(t->s) - t->len - 1);
		if (n <= 0)
			break;
		t->len += n;
	}
	t->s[t->len] = 0;
	close(fd);
	if (n < 0)
		abort();
}

static void say_event(struct text *t, const char *how, const struct ukevent *ev)
{
	say(t, "%s: source %u ident %llu tag %u value %#x flags %#x udata %#llx\n",
	    how, ev->source, ev->ident, ev->tag, ev->events, ev->flags,
	    ev->user_data);
	say(t, "others %d %d %llu %u %llu %llu\n", ev->op, ev->result, ev->data,
	    ev->fflags, ev->interval, ev->resv);
}

/* How many lines of @path have @word in them */
static int count_lines(const char *path, const char *word)
{
	FILE *f = fopen(path, "re");
	char line[512];
	int nr = 0;

	while (f && fgets(line, sizeof(line), f))
		nr += !!strstr(line, word);
	if (f)
		fclose(f);
	return nr;
}

/*
 * A call, with all that it can point to
 */

enum which {
	CTL,
	GET,
	INIT,
	MMAP,
};

enum pointer {
	PARAMS,
	CHANGES,		/* of kevent_ctl() */
	EVENTS,
	TIMEOUT,
	OPTS,
	SIGMASK,
	OPT_CHANGES,
	NR_POINTERS,
};

struct call {
	enum which which;
	struct kevent_params params;
	struct ukevent changes[MAX_CHANGES];
	unsigned int nr_changes;
	__u32 ctl_flags;
	struct ukevent evs[MAX_EVENTS];
	unsigned int min;
	unsigned int max;
	struct __kernel_timespec timeout;
	struct kevent_getopts opts;
	__u64 sigmask;
	__u64 offset;
	size_t size;
	/* Where each of them is, how many bytes of it, and how many can be read */
	void *ptr[NR_POINTERS];
	size_t len[NR_POINTERS];
	size_t fits[NR_POINTERS];
};

/*
 * A world
 */

enum file {
	EFD,			/* registered, its event is in the ring */
	EFD2,
	PIPE,			/* one end, and the other */
	PIPE_W,
	STREAM,
	STREAM_W,
	DGRAM,			/* polled, it has two wait queues, as a tty */
	DGRAM_W,
	PTY,
	TIMERFD,
	SIGNALFD,
	REGULAR,		/* cannot be polled */
	NR_FILES,
};

struct world {
	struct kq q;		/* of the call */
	struct kq other;	/* to move to */
	struct kq pool;		/* to see how many registrations there can be */
	int fds[NR_FILES];
};

static bool world_open(struct world *w)
{
	int *fds = w->fds;
	sigset_t usr1;
	bool ok;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	ok = !kq_open(&w->q, SLOTS) && !kq_open(&w->other, SLOTS) &&
	     !kq_open_flags(&w->pool, 1, KEVENT_INIT_OVERCOMMIT, 0) &&
	     !pipe2(&fds[PIPE], O_NONBLOCK | O_CLOEXEC) &&
	     !socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, &fds[STREAM]) &&
	     !socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, &fds[DGRAM]);

	fds[EFD] = open_eventfd();
	fds[EFD2] = open_eventfd();
	fds[PTY] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	fds[TIMERFD] = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	fds[SIGNALFD] = signalfd(-1, &usr1, SFD_CLOEXEC);
	fds[REGULAR] = memfd_create("regular", MFD_CLOEXEC);
	for (int i = 0; i < NR_FILES; i++)
		ok = ok && fds[i] >= 0;

	signal_eventfd(fds[EFD]);
	return ok && kq_add(&w->q, fds[EFD], EPOLLIN, 0x11) == 1 &&
	       kq_add_user(&w->q, 1, KEVENT_USER_COUNT, 0, 0x22) == 1 &&
	       kq_trigger(&w->q, 1, 5, 0) == 1 &&
	       kq_add_user(&w->q, 2, KEVENT_USER_FLAGS, 0, 0x33) == 1;
}

static void world_close(struct world *w)
{
	for (int i = 0; i < NR_FILES; i++)
		close(w->fds[i]);
	kq_close(&w->q);
	kq_close(&w->other);
	kq_close(&w->pool);
}

static void say_queue(struct text *t, const char *name, const struct kq *q)
{
	const __u32 *header = (const __u32 *)q->map.ring;
	char path[64];

	say(t, "%s\n", name);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", q->fd);
	say_file(t, path);
	for (size_t i = 0; i < sizeof(struct kevent_ring) / 4; i++)
		say(t, " %x", header[i]);
	say(t, "\n");
	for (__u32 i = 0; i < q->map.nr_slots; i++) {
		const struct kevent_slot *s = kevent_ring_slot(&q->map, i);

		say(t, "slot %u: %llx %llx %llx %x %x %x\n", i, s->word,
		    s->user_data, s->ident, s->source, s->flags, s->tag);
	}
}

/* Fill @q, then empty it again: how many registrations it takes, and why not more */
static void say_room(struct text *t, const char *name, const struct kq *q)
{
	int nr, ret = 1;

	for (nr = 0; nr < 4 * QUOTA; nr++) {
		ret = kq_add_user(q, 1000 + nr, KEVENT_USER_COUNT, 0, 0);
		if (ret != 1)
			break;
	}
	say(t, "room of %s: %d, then %s\n", name, nr, strerror(ret < 0 ? -ret : 0));
	while (nr--)
		if (kq_op(q, KEVENT_SOURCE_USER, KEVENT_OP_DEL, 1000 + nr, 0) != 1)
			say(t, "%d cannot be deleted\n", nr);
}

/* What there is to be collected, without waiting */
static void say_events(struct text *t, const char *name, const struct kq *q)
{
	struct ukevent evs[2 * SLOTS];
	int nr = kq_getevents(q, evs, 0, ARRAY_SIZE(evs), 0);

	say(t, "%d events of %s\n", nr, name);
	for (int i = 0; i < nr; i++)
		say_event(t, name, &evs[i]);
}

static void say_world(struct text *t, struct world *w)
{
	int fd = dup(0), written;

	close(fd);
	/*
	 * A call that collects also claims what was taken back, up to the last
	 * of the events that it could have copied.  So that this is no
	 * difference, one more does.
	 */
	kq_getevents(&w->q, (struct ukevent *)8, 0, MAX_EVENTS, 0);
	kq_getevents(&w->other, (struct ukevent *)8, 0, MAX_EVENTS, 0);
	say(t, "next descriptor %d, %d mappings\n", fd,
	    count_lines("/proc/self/maps", "[kevent]"));
	say_queue(t, "queue", &w->q);
	say_queue(t, "other", &w->other);
	say_room(t, "queue", &w->q);
	say_room(t, "other", &w->other);
	say_room(t, "user", &w->pool);
	say_events(t, "queue", &w->q);
	say_events(t, "other", &w->other);

	/* Everything happens that can, at once and once more. */
	for (int i = 0; i < 2; i++) {
		signal_eventfd(w->fds[EFD]);
		signal_eventfd(w->fds[EFD2]);
		written = write(w->fds[PIPE_W], "", 1) + write(w->fds[STREAM_W], "", 1) +
		       write(w->fds[DGRAM_W], "", 1);
		say(t, "%d written\n", written);
		for (int id = 1; id <= 3; id++) {
			say(t, "%d %d\n", kq_trigger(&w->q, id, 7, 0),
			    kq_trigger(&w->q, id, 0, KEVENT_NOTE_TRIGGER | 9));
			say(t, "%d %d\n", kq_trigger(&w->other, id, 7, 0),
			    kq_trigger(&w->other, id, 0, KEVENT_NOTE_TRIGGER | 9));
		}
		say_events(t, "queue", &w->q);
		say_events(t, "other", &w->other);
	}

	/* The timer, if there is one, can be made to expire. */
	for (int i = 0; i < 2; i++) {
		const struct kq *q = i ? &w->other : &w->q;
		struct ukevent ev;

		if (kq_mod_timer(q, 7, CLOCK_MONOTONIC, 0, 0, 0x99) != 1)
			continue;
		say(t, "timer of queue %d: %d\n", i,
		    kq_getevents(q, &ev, 1, 1, PATIENCE_MS));
		say_event(t, "timer", &ev);
	}
	say_queue(t, "queue", &w->q);
	say_queue(t, "other", &w->other);

	/* The one that counts the milliseconds goes on doing so. */
	for (int i = 0; i < 2; i++) {
		struct ukevent ev;

		if (kq_op(&w->q, KEVENT_SOURCE_TIMER, KEVENT_OP_ENABLE, 8, 0) == 1)
			say(t, "counted: %d\n",
			    kq_getevents(&w->q, &ev, 1, 1, PATIENCE_MS));
	}
}

/*
 * What is to be done
 */

/*
 * In the changes of a plan, the idents of files are places in world.fds, and what
 * is moved goes to the other queue.
 */
struct plan {
	enum which which;
	struct ukevent before[3];	/* done without faults, to begin with */
	bool set_clock;			/* after that */
	struct ukevent changes[MAX_CHANGES];
	__u32 ctl_flags;
	/* of kevent_getevents() */
	unsigned int min;
	unsigned int max;
	bool timeout;
	bool sigmask;
	/* of kevent_init() and mmap() */
	__u32 slots;
	bool header;
	/* Faults of these kinds have to be seen: a test that injects none says nothing. */
	bool memory;
	bool copy;
};

static struct ukevent change_in(const struct world *w, const struct ukevent *change)
{
	struct ukevent c = *change;

	if (c.source == KEVENT_SOURCE_FD)
		c.ident = w->fds[c.ident];
	if (c.op == KEVENT_OP_MOVE)
		c.data = w->other.fd;
	return c;
}

/* Where the arguments of the call are by now */
static void call_link(struct call *c)
{
	if (c->ptr[SIGMASK]) {
		c->opts.sigmask = (uintptr_t)c->ptr[SIGMASK];
		c->opts.sigsetsize = sizeof(c->sigmask);
	}
	c->opts.changes = (uintptr_t)c->ptr[OPT_CHANGES];
}

static void call_make(struct call *c, const struct plan *plan, const struct world *w)
{
	enum pointer changes = plan->which == GET ? OPT_CHANGES : CHANGES;

	memset(c, 0, sizeof(*c));
	c->which = plan->which;
	c->ctl_flags = plan->ctl_flags;
	while (c->nr_changes < MAX_CHANGES && plan->changes[c->nr_changes].op) {
		c->changes[c->nr_changes] = change_in(w, &plan->changes[c->nr_changes]);
		c->nr_changes++;
	}
	if (c->nr_changes) {
		c->ptr[changes] = c->changes;
		c->len[changes] = c->nr_changes * sizeof(struct ukevent);
	}
	switch (plan->which) {
	case INIT:
		c->params.slots = plan->slots;
		c->ptr[PARAMS] = &c->params;
		c->len[PARAMS] = sizeof(c->params);
		break;
	case MMAP:
		c->offset = plan->header ? KEVENT_OFF_HEADER : KEVENT_OFF_SLOTS(SLOTS);
		c->size = plan->header ? w->q.params.header_size : w->q.params.slots_size;
		break;
	case GET:
		c->min = plan->min;
		c->max = plan->max;
		memset(c->evs, 0xff, sizeof(c->evs));
		if (c->max) {
			c->ptr[EVENTS] = c->evs;
			c->len[EVENTS] = c->max * sizeof(struct ukevent);
		}
		c->timeout = ms_to_timespec(4 * PATIENCE_MS);
		if (plan->timeout) {
			c->ptr[TIMEOUT] = &c->timeout;
			c->len[TIMEOUT] = sizeof(c->timeout);
		}
		c->opts.size = sizeof(c->opts);
		c->opts.nr_changes = c->nr_changes;
		c->opts.change_flags = c->ctl_flags;
		if (c->nr_changes || plan->sigmask) {
			c->ptr[OPTS] = &c->opts;
			c->len[OPTS] = sizeof(c->opts);
		}
		if (plan->sigmask) {
			c->ptr[SIGMASK] = &c->sigmask;
			c->len[SIGMASK] = sizeof(c->sigmask);
		}
		break;
	case CTL:
		break;
	}
	memcpy(c->fits, c->len, sizeof(c->fits));
	call_link(c);
}

static int call_do(struct call *c, struct world *w)
{
	void *p;

	switch (c->which) {
	case INIT:
		return sys_kevent_init(c->ptr[PARAMS], sizeof(c->params));
	case CTL:
		return sys_kevent_ctl(w->q.fd, c->ptr[CHANGES], c->nr_changes,
				      c->ctl_flags);
	case GET:
		return sys_kevent_getevents(w->q.fd, c->ptr[EVENTS], c->min, c->max,
					    c->ptr[TIMEOUT], c->ptr[OPTS]);
	default:
		p = mmap(NULL, c->size, PROT_READ, MAP_SHARED, w->q.fd, c->offset);
		if (p == MAP_FAILED)
			return -errno;
		munmap(p, c->size);
		return 0;
	}
}

static bool plan_begin(const struct plan *plan, struct world *w, struct call *c)
{
	bool ok = world_open(w);

	for (size_t i = 0; i < ARRAY_SIZE(plan->before) && plan->before[i].op; i++)
		ok = ok && kq_apply(&w->q, change_in(w, &plan->before[i])) == 1;
	if (plan->set_clock) {
		struct timespec ts;

		clock_gettime(CLOCK_REALTIME, &ts);
		ok = ok && !clock_settime(CLOCK_REALTIME, &ts);
	}
	call_make(c, plan, w);
	return ok;
}

/* What a call says that it has done */
struct outcome {
	unsigned int applied;	/* changes, a bit for each */
	unsigned int collected;
};

/*
 * How the world has to be after this outcome.  The outcomes of one plan are few,
 * so they are kept.
 */
struct reference {
	struct plan plan;
	struct outcome outcome[16];
	struct text *text[16];
	int nr;
};

static const char *reference_of(struct reference *ref, struct outcome o)
{
	struct world w = { };
	struct call c;
	struct text *t;
	int i;

	for (i = 0; i < ref->nr; i++)
		if (!memcmp(&ref->outcome[i], &o, sizeof(o)))
			return ref->text[i]->s;
	if (i == ARRAY_SIZE(ref->text))
		abort();
	t = calloc(1, sizeof(*t));
	if (!t || !plan_begin(&ref->plan, &w, &c))
		abort();
	for (unsigned int n = 0; n < c.nr_changes; n++)
		if (o.applied >> n & 1 && kq_apply(&w.q, c.changes[n]) != 1)
			abort();
	if (o.collected &&
	    kq_getevents(&w.q, c.evs, 0, o.collected, 0) != (int)o.collected)
		abort();
	for (unsigned int n = 0; n < o.collected; n++)
		say_event(t, "got", &c.evs[n]);
	say_world(t, &w);
	world_close(&w);
	ref->outcome[i] = o;
	ref->text[i] = t;
	ref->nr++;
	return t->s;
}

/* For a message: the first line in which two texts differ */
static void first_difference(const char *a, const char *b, char *line, size_t size)
{
	const char *start_a = a, *start_b = b;

	while (*a && *a == *b) {
		if (*a == '\n') {
			start_a = a + 1;
			start_b = b + 1;
		}
		a++;
		b++;
	}
	snprintf(line, size, "\"%.*s\" and not \"%.*s\"",
		 (int)strcspn(start_a, "\n"), start_a,
		 (int)strcspn(start_b, "\n"), start_b);
}

/*
 * The call has returned @ret; nothing else may have been done than that says.
 * Ends the world.
 */
static void __want_whole(struct __test_metadata *_metadata, const char *when,
			 struct reference *ref, struct world *w, struct call *c,
			 int ret)
{
	enum pointer at = c->which == GET ? OPT_CHANGES : CHANGES;
	struct ukevent *changes = c->ptr[at];
	bool results = c->ctl_flags & KEVENT_CTL_RESULTS;
	unsigned int all = (1U << c->nr_changes) - 1;
	unsigned int zero = 0;
	struct outcome o = { };
	struct text *t = calloc(1, sizeof(*t));
	char diff[512] = "";

	ASSERT_NE(NULL, t);
	for (unsigned int n = 0; n < c->fits[at] / sizeof(*changes); n++)
		if (results && ret >= 0 && !changes[n].result)
			zero |= 1U << n;
	if (c->which == INIT && ret >= 0)
		close(ret);
	if (c->which == CTL && ret > 0) {
		o.applied = results ? zero : all;
		/* The last of them may not have been looked at. */
		while (__builtin_popcount(o.applied) > ret)
			o.applied &= ~(1U << (31 - __builtin_clz(o.applied)));
	}
	if (c->which == GET && ret >= 0) {
		o.applied = results ? zero : all;
		o.collected = c->max ? ret : 0;
	}
	for (unsigned int n = 0; n < o.collected; n++)
		say_event(t, "got", (struct ukevent *)c->ptr[EVENTS] + n);
	say_world(t, w);
	world_close(w);

	for (unsigned int n = 0; n <= c->nr_changes; n++) {
		const char *want = reference_of(ref, o);

		if (!strcmp(t->s, want)) {
			diff[0] = 0;
			break;
		}
		if (!diff[0])
			first_difference(t->s, want, diff, sizeof(diff));
		/* It says that it failed, not how many changes were applied before. */
		if (c->which != GET || ret >= 0)
			break;
		o.applied = o.applied << 1 | 1;
	}
	EXPECT_EQ(0, diff[0])
		TH_LOG("%s, returned %d: %s", when, ret, diff);
	free(t);
}

#define want_whole(when, ref, w, c, ret)				\
	__want_whole(_metadata, when, ref, w, c, ret)

/*
 * Injected faults
 */

static const struct {
	const char *path;
	const char *value;
} settings[] = {
	/* Everything can fail, whoever waits for it, and nobody writes to the log. */
	{ "failslab/ignore-gfp-wait", "N" },
	{ "failslab/verbose", "0" },
	{ "fail_page_alloc/ignore-gfp-wait", "N" },
	{ "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "fail_page_alloc/min-order", "0" },
	{ "fail_page_alloc/verbose", "0" },
	{ "fail_usercopy/verbose", "0" },
};

#define DEBUGFS "/sys/kernel/debug"

static bool set_up_injection(void)
{
	bool ok = true;

	if (access(DEBUGFS "/failslab", F_OK))
		mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		char path[128];

		snprintf(path, sizeof(path), DEBUGFS "/%s", settings[i].path);
		ok = ok && write_file(path, settings[i].value);
	}
	return ok;
}

static void say_file_of(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, text, size - 1) : -1;

	close(fd);
	text[n > 0 ? n : 0] = 0;
}

/*
 * All tests are those of a user who can have so many registrations and no more,
 * so that it is seen if one is counted that is not there.  Without the rights for
 * that, there are other things to be seen.
 */
static void limit_user(char *old, size_t size)
{
	char text[16];

	say_file_of(LIMIT_FILE, old, size);
	snprintf(text, sizeof(text), "%d", QUOTA);
	if (setresuid(UID, 0, 0) || !write_file(LIMIT_FILE, text))
		old[0] = 0;
}

static void set_nth(int fd, unsigned int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", nth);

	/* What is left of the last can make this fail, once. */
	if (pwrite(fd, text, len, 0) != len && pwrite(fd, text, len, 0) != len)
		abort();
}

/* Was it injected?  If not, the next copy may be the one: that of the answer. */
static bool was_injected(int fd)
{
	char text[16] = "";
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	set_nth(fd, 0);
	return n > 0 && !atoi(text);
}

FIXTURE(injected) {
	char limit[32];
	int nth;
	struct reference ref;
};

FIXTURE_VARIANT(injected) {
	struct plan plan;
};

/* What the changes of plans are made of; events of EFD2 is what most of them add. */
#define OF_FILE(_op, _file, _flags)					\
	{ .source = KEVENT_SOURCE_FD, .op = KEVENT_OP_##_op, .ident = _file, \
	  .flags = _flags, .events = EPOLLIN, .user_data = 0x77 }
#define OF_TIMER(_op, _fflags)						\
	{ .source = KEVENT_SOURCE_TIMER, .op = KEVENT_OP_##_op, .ident = 7, \
	  .flags = KEVENT_EDGE, .fflags = _fflags, .data = 1ULL << 62,	\
	  .user_data = 0x77 }
/* It counts the milliseconds, and nobody is told. */
#define OF_COUNTER(_op, _fflags, _interval)				\
	{ .source = KEVENT_SOURCE_TIMER, .op = KEVENT_OP_##_op, .ident = 8, \
	  .flags = KEVENT_EDGE | KEVENT_DISABLED, .fflags = _fflags,	\
	  .data = 1, .interval = _interval }
#define OF_USER(_op, _ident)						\
	{ .source = KEVENT_SOURCE_USER, .op = KEVENT_OP_##_op, .ident = _ident, \
	  .flags = KEVENT_EDGE, .events = KEVENT_USER_COUNT, .user_data = 0x77 }
#define NAMED(_op, _source, _ident)					\
	{ .source = KEVENT_SOURCE_##_source, .op = KEVENT_OP_##_op, .ident = _ident }
#define TRIGGER(_ident)							\
	{ .source = KEVENT_SOURCE_USER, .op = KEVENT_OP_TRIGGER, .ident = _ident, \
	  .data = 3 }
#define GROW(_slots)							\
	{ .source = KEVENT_SOURCE_QUEUE, .op = KEVENT_OP_GROW, .data = _slots }
#define WAKE								\
	{ .source = KEVENT_SOURCE_QUEUE, .op = KEVENT_OP_WAKE }

#define CANCEL_ON_SET							\
	(CLOCK_REALTIME | KEVENT_TIMER_ABS | KEVENT_TIMER_CANCEL_ON_SET)

/* A call of kevent_ctl() with one change, which is said to need memory or not */
#define CHANGE(_memory, ...)						\
	{ .changes = { __VA_ARGS__ }, .copy = true, .memory = _memory }
/* The same, when another was made before */
#define CHANGE_AFTER(_before, _memory, ...)				\
	{ .before = { _before }, .changes = { __VA_ARGS__ }, .copy = true, \
	  .memory = _memory }

FIXTURE_VARIANT_ADD(injected, add_eventfd) {
	.plan = CHANGE(true, OF_FILE(ADD, EFD2, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_eventfd_one_shot) {
	.plan = CHANGE(true, OF_FILE(ADD, EFD2, KEVENT_EDGE | KEVENT_ONESHOT)),
};

FIXTURE_VARIANT_ADD(injected, add_eventfd_exclusive) {
	.plan = CHANGE(true, OF_FILE(ADD, EFD2, KEVENT_EDGE | KEVENT_EXCLUSIVE)),
};

FIXTURE_VARIANT_ADD(injected, add_eventfd_level) {
	.plan = CHANGE(true, OF_FILE(ADD, EFD2, KEVENT_LEVEL)),
};

FIXTURE_VARIANT_ADD(injected, add_pipe) {
	.plan = CHANGE(true, OF_FILE(ADD, PIPE, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_stream) {
	.plan = CHANGE(true, OF_FILE(ADD, STREAM, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_datagram) {
	.plan = CHANGE(true, OF_FILE(ADD, DGRAM, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_tty) {
	.plan = CHANGE(true, OF_FILE(ADD, PTY, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_tty_level) {
	.plan = CHANGE(true, OF_FILE(ADD, PTY, KEVENT_LEVEL)),
};

FIXTURE_VARIANT_ADD(injected, add_timerfd) {
	.plan = CHANGE(true, OF_FILE(ADD, TIMERFD, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_signalfd) {
	.plan = CHANGE(true, OF_FILE(ADD, SIGNALFD, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, add_regular_file) {
	.plan = CHANGE(true,
			OF_FILE(ADD, REGULAR, KEVENT_EDGE | KEVENT_ALWAYS_READY)),
};

FIXTURE_VARIANT_ADD(injected, add_timer) {
	.plan = CHANGE(true, OF_TIMER(ADD, CLOCK_MONOTONIC)),
};

FIXTURE_VARIANT_ADD(injected, add_timer_cancelled_on_set) {
	.plan = CHANGE(true, OF_TIMER(ADD, CANCEL_ON_SET)),
};

FIXTURE_VARIANT_ADD(injected, add_user) {
	.plan = CHANGE(false, OF_USER(ADD, 3)),
};

FIXTURE_VARIANT_ADD(injected, set_new_eventfd) {
	.plan = CHANGE(true, OF_FILE(SET, EFD2, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, set_new_timer) {
	.plan = CHANGE(true, OF_TIMER(SET, CLOCK_TAI)),
};

FIXTURE_VARIANT_ADD(injected, set_new_user) {
	.plan = CHANGE(false, OF_USER(SET, 3)),
};

FIXTURE_VARIANT_ADD(injected, set_eventfd) {
	.plan = CHANGE(false, OF_FILE(SET, EFD, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, mod_eventfd) {
	.plan = CHANGE(false, OF_FILE(MOD, EFD, KEVENT_EDGE | KEVENT_DISPATCH)),
};

FIXTURE_VARIANT_ADD(injected, mod_eventfd_to_level) {
	.plan = CHANGE(false, OF_FILE(MOD, EFD, KEVENT_LEVEL)),
};

FIXTURE_VARIANT_ADD(injected, mod_user) {
	.plan = CHANGE(false, OF_USER(MOD, 1)),
};

FIXTURE_VARIANT_ADD(injected, mod_eventfd_to_edge) {
	.plan = CHANGE_AFTER(OF_FILE(ADD, EFD2, KEVENT_LEVEL), false,
			      OF_FILE(MOD, EFD2, KEVENT_EDGE)),
};

FIXTURE_VARIANT_ADD(injected, mod_timer) {
	.plan = CHANGE_AFTER(OF_TIMER(ADD, CLOCK_MONOTONIC), false,
			      OF_TIMER(MOD, CLOCK_BOOTTIME)),
};

FIXTURE_VARIANT_ADD(injected, mod_timer_to_cancelled_on_set) {
	.plan = CHANGE_AFTER(OF_TIMER(ADD, CLOCK_MONOTONIC), true,
			      OF_TIMER(MOD, CANCEL_ON_SET)),
};

FIXTURE_VARIANT_ADD(injected, mod_timer_that_runs) {
	.plan = CHANGE_AFTER(OF_COUNTER(ADD, CLOCK_MONOTONIC, NSEC_PER_MSEC), true,
			     OF_COUNTER(MOD, CANCEL_ON_SET, NSEC_PER_MSEC)),
};

FIXTURE_VARIANT_ADD(injected, move_timer_that_runs) {
	.plan = CHANGE_AFTER(OF_COUNTER(ADD, CLOCK_MONOTONIC, NSEC_PER_MSEC), true,
			     NAMED(MOVE, TIMER, 8)),
};

FIXTURE_VARIANT_ADD(injected, del_eventfd) {
	.plan = CHANGE(false, NAMED(DEL, FD, EFD)),
};

FIXTURE_VARIANT_ADD(injected, del_user) {
	.plan = CHANGE(false, NAMED(DEL, USER, 1)),
};

FIXTURE_VARIANT_ADD(injected, del_timer) {
	.plan = CHANGE_AFTER(OF_TIMER(ADD, CANCEL_ON_SET), false,
			      NAMED(DEL, TIMER, 7)),
};

FIXTURE_VARIANT_ADD(injected, disable_eventfd) {
	.plan = CHANGE(false, NAMED(DISABLE, FD, EFD)),
};

FIXTURE_VARIANT_ADD(injected, disable_user) {
	.plan = CHANGE(false, NAMED(DISABLE, USER, 1)),
};

FIXTURE_VARIANT_ADD(injected, enable_eventfd) {
	.plan = CHANGE_AFTER(NAMED(DISABLE, FD, EFD), false,
			      NAMED(ENABLE, FD, EFD)),
};

FIXTURE_VARIANT_ADD(injected, enable_user) {
	.plan = CHANGE_AFTER(NAMED(DISABLE, USER, 1), false,
			      NAMED(ENABLE, USER, 1)),
};

FIXTURE_VARIANT_ADD(injected, trigger_count) {
	.plan = CHANGE(false, TRIGGER(1)),
};

FIXTURE_VARIANT_ADD(injected, wake) {
	.plan = CHANGE(false, WAKE),
};

FIXTURE_VARIANT_ADD(injected, grow) {
	.plan = CHANGE(true, GROW(2 * SLOTS)),
};

FIXTURE_VARIANT_ADD(injected, grow_by_pages) {
	.plan = CHANGE(true, GROW(512)),
};

FIXTURE_VARIANT_ADD(injected, move_eventfd) {
	.plan = CHANGE(true, NAMED(MOVE, FD, EFD)),
};

FIXTURE_VARIANT_ADD(injected, move_user) {
	.plan = CHANGE(false, NAMED(MOVE, USER, 1)),
};

FIXTURE_VARIANT_ADD(injected, move_timer) {
	.plan = CHANGE_AFTER(OF_TIMER(ADD, CANCEL_ON_SET), true,
			      NAMED(MOVE, TIMER, 7)),
};

/* It takes memory to start a timer again that was cancelled. */
FIXTURE_VARIANT_ADD(injected, enable_timer_when_the_clock_was_set) {
	.plan = {
		.before = { OF_TIMER(ADD, CANCEL_ON_SET), NAMED(DISABLE, TIMER, 7) },
		.set_clock = true,
		.changes = { NAMED(ENABLE, TIMER, 7) },
		.copy = true,
		.memory = true,
	},
};

#define SOME_CHANGES							\
	{ OF_FILE(ADD, EFD2, KEVENT_EDGE), OF_TIMER(SET, CANCEL_ON_SET), \
	  TRIGGER(1), NAMED(DEL, USER, 1) }

FIXTURE_VARIANT_ADD(injected, batch) {
	.plan = {
		.changes = SOME_CHANGES,
		.copy = true,
		.memory = true,
	},
};

FIXTURE_VARIANT_ADD(injected, batch_with_results) {
	.plan = {
		.changes = SOME_CHANGES,
		.ctl_flags = KEVENT_CTL_RESULTS,
		.copy = true,
		.memory = true,
	},
};

FIXTURE_VARIANT_ADD(injected, getevents) {
	.plan = {
		.which = GET,
		.min = 2,
		.max = 4,
		.timeout = true,
		.copy = true,
	},
};

FIXTURE_VARIANT_ADD(injected, getevents_level) {
	.plan = {
		.which = GET,
		.before = { OF_FILE(MOD, EFD, KEVENT_LEVEL) },
		.max = 4,
		.copy = true,
	},
};

FIXTURE_VARIANT_ADD(injected, getevents_of_one_shots) {
	.plan = {
		.which = GET,
		.before = { OF_FILE(MOD, EFD, KEVENT_EDGE | KEVENT_ONESHOT) },
		.max = 4,
		.copy = true,
	},
};

FIXTURE_VARIANT_ADD(injected, getevents_that_only_waits) {
	.plan = {
		.which = GET,
		.min = 2,
		.timeout = true,
		.copy = true,
	},
};

FIXTURE_VARIANT_ADD(injected, getevents_with_all_options) {
	.plan = {
		.which = GET,
		.changes = SOME_CHANGES,
		.min = 1,
		.max = 4,
		.timeout = true,
		.sigmask = true,
		.copy = true,
		.memory = true,
	},
};

FIXTURE_VARIANT_ADD(injected, getevents_with_results) {
	.plan = {
		.which = GET,
		.changes = SOME_CHANGES,
		.ctl_flags = KEVENT_CTL_RESULTS,
		.min = 1,
		.max = 4,
		.timeout = true,
		.copy = true,
		.memory = true,
	},
};

FIXTURE_VARIANT_ADD(injected, init) {
	.plan = {
		.which = INIT,
		.slots = 256,
		.copy = true,
		.memory = true,
	},
};

FIXTURE_VARIANT_ADD(injected, mmap_of_the_header) {
	.plan = {
		.which = MMAP,
		.header = true,
		.memory = true,
	},
};

FIXTURE_VARIANT_ADD(injected, mmap_of_the_slots) {
	.plan = {
		.which = MMAP,
		.memory = true,
	},
};

FIXTURE_SETUP(injected)
{
	struct kq q;

	if (!kq_setup(_metadata, &q, 1))
		return;
	kq_close(&q);
	self->nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (self->nth < 0)
		SKIP(return, "no /proc/thread-self/fail-nth: no CONFIG_FAULT_INJECTION");
	if (!set_up_injection())
		SKIP(return, "cannot set up failslab, fail_page_alloc and fail_usercopy");
	limit_user(self->limit, sizeof(self->limit));
	self->ref.plan = variant->plan;
}

/* In the parent, so that the limit is right even after a crash */
FIXTURE_TEARDOWN_PARENT(injected)
{
	if (self->limit[0])
		write_file(LIMIT_FILE, self->limit);
}

/* How it ends if nothing fails */
static int ret_of(struct __test_metadata *_metadata, struct reference *ref)
{
	struct world w = { };
	struct call c;
	int ret;

	ASSERT_TRUE(plan_begin(&ref->plan, &w, &c));
	ret = call_do(&c, &w);
	EXPECT_LE(0, ret);
	want_whole("without a fault", ref, &w, &c, ret);
	return ret;
}

/*
 * The first thing that can fail does, then the second instead, and so on, until
 * there is nothing that could.
 */
TEST_F_TIMEOUT(injected, faults_are_survived_or_change_nothing, 120)
{
	const struct plan *plan = &self->ref.plan;
	int ret, good = ret_of(_metadata, &self->ref);
	int nth = 0, no_memory = 0, no_copy = 0;
	bool hit;

	do {
		struct world w = { };
		struct call c;
		char when[32];

		ASSERT_GT(1000, ++nth);
		ASSERT_TRUE(plan_begin(plan, &w, &c));
		set_nth(self->nth, nth);
		ret = call_do(&c, &w);
		hit = was_injected(self->nth);

		EXPECT_TRUE(ret >= 0 || (hit && (ret == -ENOMEM || ret == -EFAULT)))
			TH_LOG("fault %d: %s", nth, strerror(-ret));
		no_memory += ret == -ENOMEM;
		no_copy += ret == -EFAULT;
		for (unsigned int n = 0; n < c.nr_changes; n++) {
			int result = c.changes[n].result;

			EXPECT_TRUE(!result || (hit && result == -ENOMEM))
				TH_LOG("fault %d, change %d: %s", nth, n,
				       strerror(-result));
			no_memory += result == -ENOMEM;
		}
		snprintf(when, sizeof(when), "fault %d", nth);
		want_whole(when, &self->ref, &w, &c, ret);
	} while (hit && !_metadata->exit_code);
	if (_metadata->exit_code)
		return;

	EXPECT_EQ(good, ret);
	/* What needs no memory does not fail for want of it. */
	EXPECT_EQ(plan->memory, no_memory > 0);
	EXPECT_EQ(plan->copy, no_copy > 0);
	TH_LOG("%d faults: %d times no memory, %d times no copy", nth - 1, no_memory,
	       no_copy);
}

/*
 * Holes in memory
 */

enum behind {
	NOTHING,		/* is mapped where the argument goes on */
	READ_ONLY,
};

FIXTURE(hole) {
	char limit[32];
	unsigned char *mem;	/* two pages */
	size_t page;
	struct reference ref;
};

FIXTURE_VARIANT(hole) {
	struct plan plan;
};

FIXTURE_VARIANT_ADD(hole, init) {
	.plan = { .which = INIT, .slots = 5 },
};

FIXTURE_VARIANT_ADD(hole, batch) {
	.plan = { .changes = SOME_CHANGES },
};

FIXTURE_VARIANT_ADD(hole, batch_with_results) {
	.plan = { .changes = SOME_CHANGES, .ctl_flags = KEVENT_CTL_RESULTS },
};

FIXTURE_VARIANT_ADD(hole, getevents) {
	.plan = {
		.which = GET,
		.changes = SOME_CHANGES,
		.min = 1,
		.max = 4,
		.timeout = true,
		.sigmask = true,
	},
};

FIXTURE_VARIANT_ADD(hole, getevents_with_results) {
	.plan = {
		.which = GET,
		.changes = SOME_CHANGES,
		.ctl_flags = KEVENT_CTL_RESULTS,
		.min = 1,
		.max = 4,
	},
};

FIXTURE_SETUP(hole)
{
	struct kq q;

	if (!kq_setup(_metadata, &q, 1))
		return;
	kq_close(&q);
	self->page = sysconf(_SC_PAGESIZE);
	self->mem = mmap(NULL, 2 * self->page, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->mem);
	limit_user(self->limit, sizeof(self->limit));
	self->ref.plan = variant->plan;
}

/* In the parent, so that the limit is right even after a crash */
FIXTURE_TEARDOWN_PARENT(hole)
{
	if (self->limit[0])
		write_file(LIMIT_FILE, self->limit);
}

/*
 * Argument @p goes @keep bytes into the first page, and on in the second.  False if
 * it is no longer than that.
 */
static bool put_into_hole(struct __test_metadata *_metadata, struct reference *ref,
			  unsigned char *mem, size_t page, enum behind behind,
			  enum pointer p, size_t keep, int good)
{
	void *at = mem + page - keep;
	struct world w = { };
	struct call c;
	char when[96];
	bool written;
	int ret;

	ASSERT_TRUE(plan_begin(&ref->plan, &w, &c));
	written = p == PARAMS || p == EVENTS ||
		  ((p == CHANGES || p == OPT_CHANGES) && c.ctl_flags);
	if (keep >= c.len[p]) {
		world_close(&w);
		return false;
	}
	memcpy(at, c.ptr[p], c.len[p]);
	c.ptr[p] = at;
	if (behind == NOTHING)
		c.fits[p] = keep;
	call_link(&c);
	mprotect(mem + page, page, behind == NOTHING ? PROT_NONE : PROT_READ);
	ret = call_do(&c, &w);
	mprotect(mem + page, page, PROT_READ | PROT_WRITE);

	/* What is only read can be read only. */
	if (behind == READ_ONLY && !written) {
		EXPECT_EQ(good, ret);
	} else if (keep < 4) {
		EXPECT_EQ(-EFAULT, ret);
	} else {
		EXPECT_TRUE(ret >= 0 || ret == -EFAULT)
			TH_LOG("%s", strerror(-ret));
	}
	snprintf(when, sizeof(when), "%s behind %zu bytes of argument %d",
		 behind == NOTHING ? "nothing" : "read-only memory", keep, p);
	want_whole(when, ref, &w, &c, ret);
	return true;
}

/* Each thing that the call points to goes into the hole at each place. */
TEST_F_TIMEOUT(hole, is_reached_without_doing_more_than_it_says, 120)
{
	int good = ret_of(_metadata, &self->ref);

	for (int p = 0; p < NR_POINTERS; p++)
		for (size_t keep = 0; !_metadata->exit_code; keep += 4)
			if (!put_into_hole(_metadata, &self->ref, self->mem,
					   self->page, NOTHING, p, keep, good) ||
			    !put_into_hole(_metadata, &self->ref, self->mem,
					   self->page, READ_ONLY, p, keep, good))
				break;
}

/*
 * Memory that somebody has to fill in first: the call stands still in the middle
 * of copying, and others use the queue.
 */

struct slow {
	struct kq q;
	int uffd;
	int efd;
	size_t page;
	unsigned char *mem;	/* a page that is not there yet */
	unsigned char *content;	/* what it will be */
	int ret;
};

/* False if there is no such memory to be had */
static bool slow_open(struct __test_metadata *_metadata, struct slow *s)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	memset(s, 0, sizeof(*s));
	if (!kq_setup(_metadata, &s->q, SLOTS))
		return false;
	s->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (s->uffd < 0) {
		kq_close(&s->q);
		SKIP(return false,
		     "no userfaultfd: no CONFIG_USERFAULTFD, or no rights");
	}
	ASSERT_EQ(0, ioctl(s->uffd, UFFDIO_API, &api));
	s->page = sysconf(_SC_PAGESIZE);
	s->content = calloc(1, s->page);
	s->mem = mmap(NULL, s->page, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, s->mem);
	reg.range.start = (uintptr_t)s->mem;
	reg.range.len = s->page;
	ASSERT_EQ(0, ioctl(s->uffd, UFFDIO_REGISTER, &reg));
	s->efd = open_eventfd();
	ASSERT_EQ(1, kq_add(&s->q, s->efd, EPOLLIN, 1));
	return true;
}

static void slow_close(struct slow *s)
{
	kq_close(&s->q);
	close(s->efd);
	close(s->uffd);
	munmap(s->mem, s->page);
	free(s->content);
}

static void slow_wait(struct __test_metadata *_metadata, struct slow *s)
{
	struct pollfd pfd = { .fd = s->uffd, .events = POLLIN };
	struct uffd_msg msg;

	ASSERT_EQ(1, poll(&pfd, 1, PATIENCE_MS));
	ASSERT_EQ(sizeof(msg), read(s->uffd, &msg, sizeof(msg)));
	ASSERT_EQ(UFFD_EVENT_PAGEFAULT, msg.event);
}

static void slow_fill_in(struct __test_metadata *_metadata, struct slow *s)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)s->mem,
		.src = (uintptr_t)s->content,
		.len = s->page,
	};

	ASSERT_EQ(0, ioctl(s->uffd, UFFDIO_COPY, &copy));
}

static void *collect_slowly(void *arg)
{
	struct slow *s = arg;

	s->ret = kq_getevents(&s->q, (struct ukevent *)s->mem, 0, 4, 0);
	return NULL;
}

/* What others do meanwhile, and what the call has to come to then */
enum meanwhile {
	CLAIM,
	COLLECT,
	DELETE,
	DISABLE,
	MODIFY,
	CLOSE,
	MOVE,
	HAPPEN,
};

FIXTURE(meanwhile) {
	struct slow s;
	struct kq other;
};

FIXTURE_VARIANT(meanwhile) {
	enum meanwhile what;
	int events;
	__u64 udata;
};

FIXTURE_VARIANT_ADD(meanwhile, claimed) { .what = CLAIM };
FIXTURE_VARIANT_ADD(meanwhile, collected) { .what = COLLECT };
FIXTURE_VARIANT_ADD(meanwhile, deleted) { .what = DELETE };
FIXTURE_VARIANT_ADD(meanwhile, disabled) { .what = DISABLE };
FIXTURE_VARIANT_ADD(meanwhile, modified) { .what = MODIFY, .events = 1, .udata = 2 };
FIXTURE_VARIANT_ADD(meanwhile, closed) { .what = CLOSE };
FIXTURE_VARIANT_ADD(meanwhile, moved) { .what = MOVE };
FIXTURE_VARIANT_ADD(meanwhile, again) { .what = HAPPEN, .events = 1, .udata = 1 };

FIXTURE_SETUP(meanwhile)
{
	self->other.fd = -1;
	if (slow_open(_metadata, &self->s))
		ASSERT_EQ(0, kq_open(&self->other, SLOTS));
}

FIXTURE_TEARDOWN(meanwhile)
{
	slow_close(&self->s);
	kq_close(&self->other);
}

/* An event is copied, and is somebody else's, or none, before it is claimed. */
TEST_F(meanwhile, copied_event_is_not_claimed_yet)
{
	struct slow *s = &self->s;
	struct ukevent ev;
	pthread_t thread;

	signal_eventfd(s->efd);
	ASSERT_EQ(0, pthread_create(&thread, NULL, collect_slowly, s));
	slow_wait(_metadata, s);

	/* None of this may wait for the copy. */
	switch (variant->what) {
	case CLAIM:
		EXPECT_EQ(1, kq_collect(&s->q, BY_RING, &ev, 1));
		break;
	case COLLECT:
		EXPECT_EQ(1, kq_collect(&s->q, BY_SYSCALL, &ev, 1));
		break;
	case DELETE:
		EXPECT_EQ(1, kq_del(&s->q, s->efd));
		break;
	case DISABLE:
		EXPECT_EQ(1, kq_op(&s->q, KEVENT_SOURCE_FD, KEVENT_OP_DISABLE,
				   s->efd, 0));
		break;
	case MODIFY:
		EXPECT_EQ(1, kq_mod(&s->q, s->efd, EPOLLIN, 2));
		break;
	case CLOSE:
		close(s->efd);
		break;
	case MOVE:
		EXPECT_EQ(1, kq_move(&s->q, &self->other, KEVENT_SOURCE_FD, s->efd,
				     0));
		want_event(&self->other, BY_RING, s->efd, EPOLLIN, EPOLLIN, 1);
		break;
	case HAPPEN:
		signal_eventfd(s->efd);
		break;
	}

	slow_fill_in(_metadata, s);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(variant->events, s->ret);
	if (s->ret > 0)
		EXPECT_EQ(variant->udata, ((struct ukevent *)s->mem)->user_data);
	want_none(&s->q, BY_SYSCALL);
	want_none(&self->other, BY_SYSCALL);
}

static void *change_slowly(void *arg)
{
	struct slow *s = arg;

	s->ret = sys_kevent_ctl(s->q.fd, (struct ukevent *)s->mem, 2, 0);
	return NULL;
}

/* What is changed is what is there in the end, and nobody waits for it. */
TEST(copy_of_a_change_holds_up_nobody)
{
	struct ukevent *changes, ev;
	pthread_t thread;
	struct slow s;

	if (!slow_open(_metadata, &s))
		return;
	changes = (struct ukevent *)s.content;
	changes[0] = kq_fd_change(KEVENT_OP_DEL, s.efd, 0, 0);
	changes[1] = kq_fd_change(KEVENT_OP_ADD, s.efd, EPOLLIN, 3);
	ASSERT_EQ(0, pthread_create(&thread, NULL, change_slowly, &s));
	slow_wait(_metadata, &s);

	EXPECT_EQ(1, kq_mod(&s.q, s.efd, EPOLLIN, 2));
	signal_eventfd(s.efd);
	EXPECT_EQ(1, kq_collect(&s.q, BY_SYSCALL, &ev, 1));
	EXPECT_EQ(2, ev.user_data);

	slow_fill_in(_metadata, &s);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(2, s.ret);
	want_event(&s.q, BY_SYSCALL, s.efd, EPOLLIN, EPOLLIN, 3);
	slow_close(&s);
}

/*
 * The place for the events comes and goes.
 */

#define FLICKERS 3000

struct flicker {
	unsigned char *mem;
	size_t page;
	int stop;
};

static void *flicker_fn(void *arg)
{
	struct flicker *f = arg;

	while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED)) {
		mprotect(f->mem, f->page, PROT_NONE);
		sched_yield();
		mprotect(f->mem, f->page, PROT_READ | PROT_WRITE);
		sched_yield();
		madvise(f->mem, f->page, MADV_DONTNEED);
	}
	mprotect(f->mem, f->page, PROT_READ | PROT_WRITE);
	return NULL;
}

/*
 * What was copied can be read where it stays only: half of the event is in the
 * page that comes and goes, its value is not.
 */
TEST(a_buffer_that_comes_and_goes_loses_nothing)
{
	size_t page = sysconf(_SC_PAGESIZE);
	struct flicker f = { .page = page };
	unsigned int sent = 0, got = 0, failed = 0;
	struct ukevent *evs;
	pthread_t thread;
	struct kq q;

	if (!kq_setup(_metadata, &q, SLOTS))
		return;
	f.mem = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, f.mem);
	evs = (struct ukevent *)(f.mem + page - offsetof(struct ukevent, events));
	ASSERT_EQ(1, kq_add_user(&q, 1, KEVENT_USER_COUNT, 0, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, flicker_fn, &f));
	for (int i = 0; i < FLICKERS; i++) {
		int ret;

		ASSERT_EQ(1, kq_trigger(&q, 1, 1 + i % 3, 0));
		sent += 1 + i % 3;
		ret = kq_getevents(&q, evs, 0, 1, 0);
		if (ret == 1)
			got += __atomic_load_n((__u32 *)(f.mem + page),
					       __ATOMIC_RELAXED);
		else
			failed++;
		EXPECT_TRUE(ret == 1 || ret == -EFAULT)
			TH_LOG("returned %d", ret);
	}
	__atomic_store_n(&f.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	if (kq_getevents(&q, evs, 0, 1, 0) == 1)
		got += evs->events;
	EXPECT_EQ(sent, got);
	TH_LOG("%u of %u calls could not copy", failed, FLICKERS);
	kq_close(&q);
}

TEST_HARNESS_MAIN

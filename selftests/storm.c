// SPDX-License-Identifier: GPL-2.0
/*
 * kevent: everything at once, and an oracle that counts every event.
 *
 * Threads change, move and end registrations of all sources, fork and exec
 * meanwhile, and let rings grow; others make the sources active; threads or
 * processes consume, from the ring and by the call.  What is tested alone
 * elsewhere has to be right together here: no event is lost, none comes twice,
 * and none comes that cannot be.
 *
 * The oracle
 *
 * The user data of a registration is the number of its source and a serial
 * number that no other addition or modification of that source has.  A clock is
 * advanced each time that something has ended: what a consumer read from it
 * before a claim says which ends came before the claim.  An event of a serial
 * number that had ended by then is a ghost; so is one while the registration was
 * disabled, and one of a source that was never active.  The rest is up to the
 * kind of the source, see enum source_kind.
 *
 * KEVENT_STORM_EVENTS is how many events are to be claimed, by all tests of
 * storms together.  What each thread does is the same again with KEVENT_SEED,
 * when it does it is not.
 */
#include "kevent_util.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>

#define EVENTS		60000	/* of all variants together, by default */
#define VARIANTS	3
#define MERGES		16	/* of so many, one is merged, if it can be */
#define ROUND		25000	/* events of a round, after which all is checked */
#define QUEUES		3
#define GROWTHS		6
#define CHANGERS	2
#define PRODUCERS	2
#define CONSUMERS	5
#define BATCH		8
#define MAX_SOURCES	64
#define MAX_CARRIERS	32
#define RECORDS		256	/* of each source: a power of two */
#define MAX_SEQ		0xffffU
#define REG_FD		200	/* registered descriptors: this and the source */
#define WAIT_MS		20
#define STEPS_PER_FORK	1500
#define EVENTS_PER_STEP	4
#define TICK_NS		(3 * NSEC_PER_MSEC)
#define MAX_QUEUED	64	/* signals */
#define REPORTS		12

#define EDGE		KEVENT_EDGE
#define LEVEL		KEVENT_LEVEL
#define ONESHOT		KEVENT_ONESHOT
#define DISPATCH	KEVENT_DISPATCH
#define DISABLED	KEVENT_DISABLED

/* What main() does if it is started by op_exec() */
#define EXEC_ARG	"storm-trigger"

/* From <linux/android/binder.h>, which may not be there */
#define BINDER_THREAD_EXIT _IOW('b', 8, __s32)

enum source_kind {
	/*
	 * User counts that are never deleted: the sum of what is claimed is the
	 * sum of what was triggered.
	 */
	KEEP,
	/* The same, deleted and added: not more is claimed than was triggered. */
	MORTAL,
	/*
	 * User flags, always set to the next number: each is claimed once at
	 * most, and the last one is.
	 */
	FLAGS,
	/*
	 * Files that are written to when the last event was dealt with, and are
	 * moved but never looked at: each write gives one event.
	 */
	STEP,
	/*
	 * Files that are subject to everything: what was written is read because
	 * events told of it, and there are no more events than there were writes
	 * and looks.  Two of them share a file.
	 */
	FREE,
	/* Signals of a process, queued: the same, without the last */
	SIGNAL,
	/* One-shot timers: each is claimed once. */
	SHOT,
	/*
	 * Periodic timers, never modified: the sum is what the clock says, to
	 * one period.
	 */
	TICK,
	/*
	 * What a child has registered that is gone; if it was a signalfd or a
	 * binder, with the wait queue (POLLFREE).  The kernel tells of a hang-up
	 * then.
	 */
	ORPHAN,
	/* What never happens: no event is right. */
	NEVER,
};

enum carrier_type {
	NO_FILE,
	EVENTFD,
	PIPE,
	UNIX,
	TCP,
	SIGNALFD,
	BINDER,
};

/* What is counted of operations */
enum op {
	ADD, MOD, SET, DEL, ENABLE, DISABLE, MOVE, TRIGGER, WRITE, QUEUE_SIGNAL,
	CLOSE, DUP, PASS, CLOSE_QUEUE, GROW, WAKE, INTERRUPT, FORK, EXEC,
	POLLFREED,
	NR_OPS
};

static const char * const op_names[NR_OPS] = {
	"add", "modify", "set", "delete", "enable", "disable", "move", "trigger",
	"write", "queue signal", "close", "dup", "pass", "close queue", "grow",
	"wake", "interrupt", "fork", "exec", "free wait queue",
};

enum fault {
	LOST,
	DOUBLED,
	GHOST,
	WRONG,		/* an event that makes no sense, an unexpected result */
	NR_FAULTS
};

static const char * const fault_names[NR_FAULTS] = {
	"lost", "doubled", "ghost", "wrong",
};

/* What shall go wrong in a consumer, once, to see that the oracle notices */
enum sabotage {
	NONE,
	SKIP,		/* an event is claimed and forgotten */
	TWICE,		/* an event is dealt with twice */
	LATE,		/* and after the registration has ended */
};

/* A file, and what was written to and read from it */
struct carrier {
	enum carrier_type type;
	int rd;			/* never registered itself */
	int wr;
	int handed_over;	/* for the process that can read it */
	__aligned_u64 written;
	__aligned_u64 writes;
	__aligned_u64 read;
};

/* What is known of a serial number */
struct record {
	__aligned_u64 claims;	/* serial:32 | how many:32 */
	__aligned_u64 limit;	/* how many there can be at most */
	__aligned_u64 began;
	__aligned_u64 ended;	/* time of the clock; zero if it has not */
	__u32 mode;
	__u32 quiet;		/* nothing but the end of the wait queue */
};

struct source {
	enum source_kind kind;
	int nr;
	int carrier;
	__u32 tag;

	/* The owner's */
	enum { GONE, THERE, MAYBE } there;
	bool open;		/* the descriptor */
	__u32 mode;
	__u32 current;		/* serial number of what is registered */
	pid_t child;
	bool child_owns;	/* its end ends the registration */

	/* Everybody's */
	int at;			/* in which queue; negative if in none */
	int added;		/* what the child got, plus 1000 */
	int armed;		/* STEP: what was written */
	__u32 seq;		/* FLAGS: the last number triggered */
	__u32 serial;		/* the last one given */
	__aligned_u64 silent;	/* since when nothing may come; zero if it may */
	__aligned_u64 triggered;
	__aligned_u64 claimed;
	__aligned_u64 claims;
	__aligned_u64 edges;	/* claims that writes and looks can explain */
	__aligned_u64 looks;
	__aligned_u64 lives;
	__aligned_u64 started[2];	/* the time before and after it was */
	unsigned char seen[MAX_SEQ / 8 + 1];
	struct record records[RECORDS];
};

struct report {
	enum fault fault;
	int line;
	int source;
	__u32 serial;
	__aligned_u64 extra;
};

struct actor {
	struct storm *st;
	int number;
	enum collect_by by;
	bool foreign;		/* a process of its own */
	__u64 random;
	pthread_t thread;
	pid_t pid;
	struct kq q;		/* with a cursor of its own */
	int sock[2];		/* to pass descriptors through */
	__aligned_u64 steps;
	struct ukevent kept;	/* sabotage */
	bool has_kept;
};

/* Shared memory, because there are processes */
struct storm {
	struct kq q[QUEUES];
	__u64 seed;
	pid_t pid;
	int nr;
	int nr_carriers;
	int processes;		/* so many consumers are */
	int stop_changing;
	int stop_consuming;
	__aligned_u64 target;
	__aligned_u64 clock;
	__aligned_u64 claims;
	__aligned_u64 produced;
	enum sabotage sabotage;
	enum source_kind victim;
	int sabotaged;
	unsigned int patience_ms;
	int nr_reports;
	__aligned_u64 faults[NR_FAULTS];
	__aligned_u64 ops[NR_OPS];
	struct report reports[REPORTS];
	struct carrier carriers[MAX_CARRIERS];
	struct actor consumers[CONSUMERS];
	struct actor producers[PRODUCERS];
	struct actor changers[CHANGERS];
	struct source sources[MAX_SOURCES];
};

#define load(p)		__atomic_load_n(p, __ATOMIC_SEQ_CST)
#define store(p, v)	__atomic_store_n(p, v, __ATOMIC_SEQ_CST)
#define add(p, v)	__atomic_add_fetch(p, v, __ATOMIC_SEQ_CST)

static void __fault(struct storm *st, enum fault what, __u64 times, int line,
		    const struct source *src, __u32 serial, __u64 extra)
{
	int i;

	add(&st->faults[what], times);
	i = add(&st->nr_reports, 1) - 1;
	if (i < REPORTS)
		st->reports[i] = (struct report) {
			what, line, src ? src->nr : -1, serial, extra
		};
}

#define fault_times(st, what, times, src, serial, extra) \
	__fault(st, what, times, __LINE__, src, serial, extra)
#define fault(st, what, src, serial, extra) \
	fault_times(st, what, 1, src, serial, extra)

static void count_op(struct storm *st, enum op op)
{
	add(&st->ops[op], 1);
}

static unsigned int pick(struct actor *me, unsigned int n)
{
	return (next_random(&me->random) >> 20) % n;
}

/*
 * Files
 */

static bool tcp_pair(int s[2])
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t len = sizeof(addr);
	int one = 1, listener;

	s[0] = -1;
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	s[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!bind(listener, (struct sockaddr *)&addr, len) &&
	    !getsockname(listener, (struct sockaddr *)&addr, &len) &&
	    !listen(listener, 1) &&
	    !connect(s[1], (struct sockaddr *)&addr, len) &&
	    !setsockopt(s[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) &&
	    !fcntl(s[1], F_SETFL, O_NONBLOCK))
		s[0] = accept4(listener, NULL, NULL,
			       SOCK_NONBLOCK | SOCK_CLOEXEC);
	close(listener);
	return s[0] >= 0;
}

static int signal_of(const struct storm *st, const struct carrier *c)
{
	return SIGRTMIN + 1 + (c - st->carriers) % 16;
}

static bool carrier_open(struct storm *st, struct carrier *c,
			 enum carrier_type type)
{
	int s[2] = { -1, -1 };
	sigset_t set;

	switch (type) {
	case EVENTFD:
		s[0] = open_eventfd();
		s[1] = s[0];
		break;
	case PIPE:
		if (pipe2(s, O_NONBLOCK | O_CLOEXEC))
			return false;
		break;
	case UNIX:
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK |
			       SOCK_CLOEXEC, 0, s))
			return false;
		break;
	case TCP:
		if (!tcp_pair(s))
			return false;
		break;
	case SIGNALFD:
		sigemptyset(&set);
		sigaddset(&set, signal_of(st, c));
		sigprocmask(SIG_BLOCK, &set, NULL);
		s[0] = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
		break;
	case BINDER:
		s[0] = open("/dev/binder", O_RDWR | O_NONBLOCK | O_CLOEXEC);
		break;
	case NO_FILE:
		break;
	}
	memset(c, 0, sizeof(*c));
	c->type = type;
	c->rd = s[0];
	c->wr = s[1];
	return s[0] >= 0;
}

static void carrier_close(struct carrier *c)
{
	close(c->rd);
	if (c->wr >= 0 && c->wr != c->rd)
		close(c->wr);
}

/* Makes it readable; counted before, so that nobody reads more than there is. */
static bool carrier_write(struct storm *st, struct carrier *c, unsigned int n)
{
	static const char bytes[16];
	union sigval val = { .sival_int = 1 };
	__u64 value = n;
	ssize_t ret;

	if (c->type == SIGNALFD) {
		if (load(&c->written) - load(&c->read) >= MAX_QUEUED)
			return false;
		n = 1;
	}
	add(&c->written, n);
	add(&c->writes, 1);
	if (c->type == SIGNALFD)
		ret = sigqueue(st->pid, signal_of(st, c), val) ? -1 : 1;
	else if (c->type == EVENTFD)
		ret = write(c->wr, &value, sizeof(value)) < 0 ? -1 : n;
	else
		ret = write(c->wr, bytes, n);
	if (ret != n) {
		/* It is full; the writes are only a bound. */
		add(&c->written, ret < 0 ? -(__u64)n : ret - (__u64)n);
		return false;
	}
	count_op(st, c->type == SIGNALFD ? QUEUE_SIGNAL : WRITE);
	return true;
}

/* Reads all that there is; the sum of what was written */
static __u64 carrier_drain(struct carrier *c)
{
	struct signalfd_siginfo info[4];
	__u64 sum = 0, value;
	char bytes[64];
	ssize_t n;
	bool more;

	do {
		size_t size;

		switch (c->type) {
		case EVENTFD:
			size = 2 * sizeof(value);
			n = read(c->rd, &value, sizeof(value));
			break;
		case SIGNALFD:
			size = sizeof(info);
			n = read(c->rd, info, size);
			value = n / sizeof(info[0]);
			break;
		default:
			size = sizeof(bytes);
			n = read(c->rd, bytes, size);
			value = n;
		}
		if (n > 0)
			sum += value;
		/* If it was not filled, there was no more. */
		more = n < 0 ? errno == EINTR : n == size;
	} while (more);
	add(&c->read, sum);
	return sum;
}

/* The signals of a process can only be read there. */
static void take_what_was_handed_over(struct storm *st)
{
	for (int i = 0; i < st->nr_carriers; i++) {
		struct carrier *c = &st->carriers[i];

		if (load(&c->handed_over) &&
		    __atomic_exchange_n(&c->handed_over, 0, __ATOMIC_SEQ_CST))
			carrier_drain(c);
	}
}

/*
 * Serial numbers
 */

static struct carrier *carrier_of(struct storm *st, const struct source *src)
{
	return src->carrier < 0 ? NULL : &st->carriers[src->carrier];
}

static __u16 source_of(const struct source *src)
{
	if (src->carrier >= 0)
		return KEVENT_SOURCE_FD;
	if (src->kind == SHOT || src->kind == TICK)
		return KEVENT_SOURCE_TIMER;
	return KEVENT_SOURCE_USER;
}

static __u64 ident_of(const struct source *src)
{
	return src->carrier >= 0 ? REG_FD + src->nr : src->nr;
}

static struct record *record_of(struct source *src, __u32 serial)
{
	return &src->records[serial % RECORDS];
}

static __u32 begin_serial(struct storm *st, struct source *src, __u32 mode)
{
	__u32 serial = src->serial + 1;
	struct record *rec = record_of(src, serial);

	store(&rec->ended, 0);
	store(&rec->began, load(&st->clock));
	store(&rec->limit, src->kind == NEVER ? 0 :
	      mode & (ONESHOT | DISPATCH) ? 1 : ~0ULL);
	store(&rec->mode, mode);
	store(&rec->quiet, 0);
	store(&rec->claims, (__u64)serial << 32);
	store(&src->serial, serial);
	return serial;
}

static void end_serial(struct storm *st, struct source *src, __u32 serial)
{
	if (serial)
		store(&record_of(src, serial)->ended, add(&st->clock, 1));
}

/* Nothing of the source can be claimed from now on. */
static void silence(struct storm *st, struct source *src)
{
	store(&src->silent, add(&st->clock, 1));
}

static void is_gone(struct storm *st, struct source *src)
{
	end_serial(st, src, src->current);
	src->current = 0;
	src->there = GONE;
	silence(st, src);
}

/* Had @serial ended, as far as that is known, by the time @start? */
static bool had_ended(struct source *src, __u32 serial, __u64 start)
{
	struct record *rec = record_of(src, serial);
	__u64 ended = load(&rec->ended);
	__u64 began = load(&rec->began);

	/* If it is another's by now, that began later than this one ended. */
	if (load(&rec->claims) >> 32 != serial)
		return began && began <= start;
	return ended && ended <= start;
}

/* Counts a claim of @serial; true if there are more than there can be. */
static bool one_too_many(struct source *src, __u32 serial)
{
	struct record *rec = record_of(src, serial);
	__u64 claims = load(&rec->claims);

	do {
		if (claims >> 32 != serial)
			return false;
	} while (!__atomic_compare_exchange_n(&rec->claims, &claims, claims + 1,
					      false, __ATOMIC_SEQ_CST,
					      __ATOMIC_SEQ_CST));
	/* If it is another's by now, that was a larger limit, or none. */
	return (__u32)claims + 1 > load(&rec->limit) &&
	       load(&rec->claims) >> 32 == serial;
}

/*
 * Consumers
 */

static __u64 periods(__s64 from, __s64 to)
{
	return to > from ? (to - from) / TICK_NS : 0;
}

static bool is_first_time(struct source *src, __u32 seq)
{
	unsigned char bit = 1 << seq % 8;

	return !(__atomic_fetch_or(&src->seen[seq / 8], bit, __ATOMIC_SEQ_CST) &
		 bit);
}

static void take_user(struct storm *st, struct source *src, __u32 serial,
		      const struct ukevent *ev)
{
	__u32 seq = ev->events & KEVENT_NOTE_FFLAGS;

	if (src->kind == FLAGS) {
		if (ev->events != (seq | KEVENT_NOTE_TRIGGER) || !seq ||
		    seq > load(&src->seq))
			fault(st, GHOST, src, serial, ev->events);
		else if (!is_first_time(src, seq))
			fault(st, DOUBLED, src, serial, seq);
	} else if (add(&src->claimed, ev->events) > load(&src->triggered)) {
		/* Said at once for whoever looks for it; the end tells how many */
		if (src->kind == MORTAL)
			fault(st, DOUBLED, src, serial, ev->events);
	}
}

static void take_timer(struct storm *st, struct source *src, __u32 serial,
		       const struct ukevent *ev)
{
	add(&src->claimed, ev->events);
	if (src->kind == SHOT && ev->events != 1)
		fault(st, WRONG, src, serial, ev->events);
	else if (src->kind == TICK &&
		 load(&src->claimed) > periods(src->started[0], now_ns()))
		fault(st, DOUBLED, src, serial, src->claimed);
}

static void take_step(struct storm *st, struct source *src, __u32 serial)
{
	int armed = load(&src->armed);
	__u64 sum;

	if (!armed) {
		fault(st, DOUBLED, src, serial, 0);
		return;
	}
	sum = carrier_drain(carrier_of(st, src));
	if (!sum) {
		/* The event that this write gives is still to come. */
		fault(st, DOUBLED, src, serial, armed);
		return;
	}
	if (sum != armed)
		fault(st, WRONG, src, serial, sum);
	store(&src->armed, 0);
}

static void take_file(struct storm *st, struct actor *me, struct source *src,
		      __u32 serial, const struct ukevent *ev)
{
	struct carrier *c = carrier_of(st, src);
	struct record *rec = record_of(src, serial);
	__u32 mode = load(&rec->mode);
	bool quiet = load(&rec->quiet);

	if (src->kind == ORPHAN) {
		if (load(&rec->claims) >> 32 != serial)
			return;
		if (quiet ? ev->events != EPOLLHUP :
		    ev->events & ~(EPOLLIN | EPOLLHUP | KEVENT_FD_HINT))
			fault(st, GHOST, src, serial, ev->events);
		return;
	}
	if (!fd_value_ok(ev->events, EPOLLIN, EPOLLIN))
		fault(st, WRONG, src, serial, ev->events);
	if (src->kind == STEP) {
		take_step(st, src, serial);
		return;
	}
	if (c->type == SIGNALFD) {
		if (me->foreign)
			store(&c->handed_over, 1);
		else
			carrier_drain(c);
		return;
	}
	/* The mode is that of this serial number only if it still is. */
	if (mode & EDGE && load(&rec->claims) >> 32 == serial &&
	    c->type != TCP &&
	    add(&src->edges, 1) > load(&c->writes) + load(&src->looks))
		fault(st, DOUBLED, src, serial, src->edges);
	carrier_drain(c);
}

/* Deals with an event that was claimed after the clock was @start. */
static void take(struct storm *st, struct actor *me, const struct ukevent *ev,
		 __u64 start)
{
	__u32 serial = ev->user_data >> 8;
	unsigned int nr = ev->user_data & 0xff;
	struct source *src = &st->sources[nr];
	__u64 since;

	if (nr >= st->nr || !serial || serial > load(&src->serial)) {
		fault(st, GHOST, NULL, serial, ev->user_data);
		return;
	}
	/* Not what another event said, either */
	if (ev->source != source_of(src) || ev->ident != ident_of(src) ||
	    ev->tag != src->tag || !ev->events) {
		fault(st, WRONG, src, serial, ev->ident);
		return;
	}
	if (had_ended(src, serial, start)) {
		fault(st, GHOST, src, serial, start);
		return;
	}
	/* It was so all the time, if it still is. */
	since = load(&src->silent);
	if (since && since <= start && load(&src->silent) == since) {
		fault(st, GHOST, src, serial, since);
		return;
	}
	add(&src->claims, 1);
	if (one_too_many(src, serial)) {
		fault(st, src->kind == NEVER ? GHOST : DOUBLED, src, serial,
		      ev->events);
		return;
	}
	if (src->kind == NEVER)
		return;
	if (ev->source == KEVENT_SOURCE_USER)
		take_user(st, src, serial, ev);
	else if (ev->source == KEVENT_SOURCE_TIMER)
		take_timer(st, src, serial, ev);
	else
		take_file(st, me, src, serial, ev);
}

/* Deals with an event that was kept until its registration ended, if it has. */
static void bring_up_kept(struct storm *st, struct actor *me)
{
	struct source *src = &st->sources[me->kept.user_data & 0xff];
	__u64 now = load(&st->clock);

	if (me->has_kept && had_ended(src, me->kept.user_data >> 8, now)) {
		take(st, me, &me->kept, now);
		me->has_kept = false;
	}
}

/* Does what shall go wrong; true if that is all. */
static bool sabotage(struct storm *st, struct actor *me,
		     const struct ukevent *ev)
{
	unsigned int nr = ev->user_data & 0xff;

	bring_up_kept(st, me);
	if (!st->sabotage || nr >= st->nr ||
	    st->sources[nr].kind != st->victim || load(&st->claims) < 50 ||
	    __atomic_exchange_n(&st->sabotaged, 1, __ATOMIC_SEQ_CST))
		return false;
	if (st->sabotage == LATE) {
		me->kept = *ev;
		me->has_kept = true;
	} else if (st->sabotage == TWICE) {
		take(st, me, ev, load(&st->clock));
	}
	return st->sabotage == SKIP;
}

static void take_all(struct storm *st, struct actor *me,
		     const struct ukevent *evs, const __u64 *starts, int nr)
{
	for (int i = 0; i < nr; i++) {
		if (!sabotage(st, me, &evs[i]))
			take(st, me, &evs[i], starts[i]);
		add(&st->claims, 1);
	}
}

/* Collects by the call. */
static int call(struct storm *st, struct actor *me, unsigned int min,
		unsigned int max)
{
	__u64 start = load(&st->clock), starts[BATCH];
	struct ukevent evs[BATCH];
	int nr;

	nr = kq_getevents(&me->q, evs, min, max, WAIT_MS);
	if (nr < 0 && nr != -EINTR)
		fault(st, WRONG, NULL, 0, nr);
	for (int i = 0; i < nr; i++)
		starts[i] = start;
	take_all(st, me, evs, starts, nr);
	return nr;
}

/* Claims from the ring, as far as there is something. */
static int claim(struct storm *st, struct actor *me, unsigned int max)
{
	struct ukevent evs[BATCH];
	__u64 starts[BATCH];
	unsigned int nr;

	for (nr = 0; nr < max; nr++) {
		starts[nr] = load(&st->clock);
		if (!kevent_ring_claim(&me->q.map, &evs[nr]))
			break;
	}
	kevent_ring_fence();
	take_all(st, me, evs, starts, nr);
	return nr;
}

static void consume(struct storm *st, struct actor *me)
{
	unsigned int max = 1 + pick(me, BATCH);
	int ret;

	if (me->by == BY_SYSCALL) {
		if (!call(st, me, 0, max))
			call(st, me, 1, max);
		return;
	}
	if (claim(st, me, max))
		return;
	/* Waiting and level-triggered events are not in the ring. */
	if (kevent_ring_flags(&me->q.map)) {
		call(st, me, 0, max);
		return;
	}
	ret = kq_getevents(&me->q, NULL, 1, 0, WAIT_MS);
	if (ret < 0 && ret != -EINTR)
		fault(st, WRONG, NULL, 0, ret);
}

static void interrupted(int sig)
{
	(void)sig;
}

static void *consumer_fn(void *arg)
{
	struct actor *me = arg;
	struct storm *st = me->st;
	sigset_t set;

	if (kq_attach(&me->q, &st->q[me->number % QUEUES])) {
		fault(st, WRONG, NULL, 0, 0);
		return NULL;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	while (!load(&st->stop_consuming)) {
		if (!me->foreign)
			take_what_was_handed_over(st);
		consume(st, me);
	}
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	/* What came after the last look is for whoever looks next. */
	kq_unmap(&me->q);
	return NULL;
}

/*
 * Producers
 */

/* What has to be claimed, or read, and was not yet: how much it is. */
static __u64 missing_of(struct storm *st, struct source *src)
{
	struct carrier *c = carrier_of(st, src);
	__u64 got, all;

	switch (src->kind) {
	case KEEP:
		got = load(&src->claimed);
		all = load(&src->triggered);
		break;
	case SHOT:
		got = load(&src->claims);
		all = load(&src->lives);
		break;
	case FREE:
	case SIGNAL:
		got = load(&c->read);
		all = load(&c->written);
		break;
	case STEP:
		return !!load(&src->armed);
	case FLAGS:
		return src->seq && !(load(&src->seen[src->seq / 8]) >>
				     src->seq % 8 & 1);
	default:
		return 0;
	}
	return all > got ? all - got : 0;
}

/* Triggers wherever it is; true if that was done. */
static bool trigger(struct storm *st, struct source *src, __u64 data,
		    __u32 fflags)
{
	for (int tries = 0; tries < 200000; tries++) {
		struct ukevent change = kq_trigger_change(src->nr, data, fflags);
		int at = load(&src->at);
		int ret = -ENOENT;

		change.tag = src->tag;
		if (at >= 0)
			ret = kq_apply(&st->q[at], change);
		if (ret == 1) {
			count_op(st, TRIGGER);
			return true;
		}
		if (ret != -ENOENT || src->kind == MORTAL) {
			if (ret != -ENOENT)
				fault(st, WRONG, src, 0, ret);
			return false;
		}
		/* It is on its way. */
		if (tries % 16 == 15)
			sched_yield();
	}
	fault(st, WRONG, src, 0, 0);
	return false;
}

/* Makes a source active; false if it is not for it, or not now. */
static bool produce(struct storm *st, struct source *src, unsigned int n)
{
	struct carrier *c = carrier_of(st, src);

	switch (src->kind) {
	case KEEP:
	case MORTAL:
		add(&src->triggered, n);
		if (trigger(st, src, n, 0))
			return true;
		add(&src->triggered, -(__u64)n);
		return false;
	case FLAGS:
		if (src->seq >= MAX_SEQ)
			return false;
		return trigger(st, src, 0, KEVENT_NOTE_TRIGGER |
			       KEVENT_NOTE_FFCOPY | add(&src->seq, 1));
	case STEP:
		if (load(&src->armed))
			return false;
		store(&src->armed, n);
		if (carrier_write(st, c, n))
			return true;
		fault(st, WRONG, src, 0, 0);
		return false;
	case FREE:
	case SIGNAL:
		return carrier_write(st, c, n);
	default:
		return false;
	}
}

/* Is there something that was not claimed yet?  More would be merged into it. */
static bool is_busy(struct storm *st, struct source *src)
{
	return src->kind == MORTAL ?
	       load(&src->triggered) != load(&src->claimed) :
	       missing_of(st, src);
}

/* What is to go wrong may need an event that comes late. */
static bool goes_on(struct storm *st)
{
	return load(&st->claims) < st->target ||
	       (st->sabotage && !load(&st->sabotaged));
}

static void *producer_fn(void *arg)
{
	struct actor *me = arg;
	struct storm *st = me->st;
	int idle = 0;

	while (goes_on(st) &&
	       load(&st->produced) < 20 * st->target + 1000) {
		/* Who has armed a STEP, or counted FLAGS, is alone with it. */
		unsigned int nr = me->number +
				  PRODUCERS * pick(me, st->nr / PRODUCERS);
		struct source *src = &st->sources[nr];

		if ((pick(me, MERGES) && is_busy(st, src)) ||
		    !produce(st, src, 1 + pick(me, 5))) {
			/* The consumers want the processor, too. */
			if (++idle % 16 == 0)
				sched_yield();
			continue;
		}
		add(&st->produced, 1);
	}
	return NULL;
}

/*
 * Changers: each has sources of its own, so it knows what a change has to give.
 */

static bool is_pollable(const struct source *src)
{
	return src->carrier >= 0;
}

static struct ukevent named(const struct source *src, __u16 op)
{
	return kq_change(source_of(src), op, ident_of(src), src->tag);
}

/* The change that adds or modifies */
static struct ukevent terms(struct actor *me, const struct source *src,
			    __u16 op, __u32 mode, __u32 serial)
{
	__u64 udata = (__u64)serial << 8 | src->nr;
	struct ukevent change;

	if (is_pollable(src))
		change = kq_mode_change(op, ident_of(src), EPOLLIN, mode, udata);
	else if (src->kind == SHOT)
		change = kq_timer_change(op, src->nr, CLOCK_MONOTONIC,
					 pick(me, NSEC_PER_MSEC), 0, mode, udata);
	else if (src->kind == TICK)
		change = kq_timer_change(op, src->nr, CLOCK_MONOTONIC, TICK_NS,
					 TICK_NS, mode, udata);
	else
		change = kq_user_change(op, src->nr, src->kind == FLAGS ?
					KEVENT_USER_FLAGS : KEVENT_USER_COUNT,
					mode, udata);
	change.tag = src->tag;
	return change;
}

static __u32 any_mode(struct actor *me, const struct source *src, __u16 op)
{
	static const __u32 after[] = { 0, 0, 0, DISPATCH, ONESHOT };
	__u32 mode = EDGE;

	if (src->kind == SHOT)
		mode |= ONESHOT;
	else if (src->kind == KEEP)
		mode |= after[pick(me, 4)];
	else
		mode |= after[pick(me, ARRAY_SIZE(after))];
	if ((src->kind == FREE || (src->kind == NEVER && is_pollable(src))) &&
	    !pick(me, 4))
		mode ^= EDGE | LEVEL;
	if (src->kind == FREE && op == KEVENT_OP_ADD && !pick(me, 4))
		mode |= KEVENT_EXCLUSIVE | (pick(me, 2) ?
					    KEVENT_ROUND_ROBIN : 0);
	return mode | (pick(me, 6) ? 0 : DISABLED);
}

/*
 * Adds or modifies; the result.  Before the call, what it allows is allowed, and
 * after it, what it forbids is forbidden.
 */
static int set_terms(struct storm *st, struct actor *me, struct source *src,
		     __u16 op, __u32 mode, int at)
{
	__u32 serial = begin_serial(st, src, mode);
	int ret;

	count_op(st, op == KEVENT_OP_ADD ? ADD : op == KEVENT_OP_MOD ? MOD : SET);
	if (!(mode & DISABLED))
		store(&src->silent, 0);
	add(&src->looks, 1);
	src->started[0] = now_ns();
	ret = kq_apply(&st->q[at], terms(me, src, op, mode, serial));
	src->started[1] = now_ns();
	if (ret != 1) {
		/* Nothing has it, so it is the next one's. */
		store(&src->serial, serial - 1);
		return ret;
	}
	end_serial(st, src, src->current);
	src->current = serial;
	src->mode = mode;
	src->there = mode & ONESHOT ? MAYBE : THERE;
	store(&src->at, at);
	if (mode & DISABLED)
		silence(st, src);
	return ret;
}

static void expect(struct storm *st, const struct source *src, enum op op,
		   bool ok, int ret)
{
	if (!ok)
		__fault(st, WRONG, 1, -op, src, src->current, ret);
}

static void open_descriptor(struct storm *st, struct source *src)
{
	if (is_pollable(src) && !src->open) {
		dup3(carrier_of(st, src)->rd, ident_of(src), O_CLOEXEC);
		src->open = true;
	}
}

static void op_add(struct storm *st, struct actor *me, struct source *src)
{
	__u32 mode = any_mode(me, src, KEVENT_OP_ADD);
	int was = src->there, at = src->at, ret;

	open_descriptor(st, src);
	if (was == GONE) {
		at = pick(me, QUEUES);
		store(&src->at, at);
	}
	/* Counted before it can expire */
	add(&src->lives, 1);
	ret = set_terms(st, me, src, KEVENT_OP_ADD, mode, at);
	if (ret != 1)
		add(&src->lives, -1ULL);
	expect(st, src, ADD, was == THERE ? ret == -EEXIST :
	       ret == 1 || ret == -ENOSPC || (was == MAYBE && ret == -EEXIST),
	       ret);
}

static void op_mod(struct storm *st, struct actor *me, struct source *src)
{
	__u32 mode = any_mode(me, src, KEVENT_OP_MOD);
	bool to_edge = src->mode & LEVEL && mode & EDGE;
	bool exclusive = src->mode & KEVENT_EXCLUSIVE;
	int was = src->there, ret;

	if (is_pollable(src) && !src->open)
		return;
	ret = set_terms(st, me, src, KEVENT_OP_MOD, mode, src->at);
	expect(st, src, MOD, (ret == 1 && was != GONE && !exclusive) ||
	       (ret == -EINVAL && exclusive) ||
	       (ret == -ENOENT && was != THERE) ||
	       (ret == -ENOSPC && to_edge), ret);
}

static void op_set(struct storm *st, struct actor *me, struct source *src)
{
	__u32 mode = any_mode(me, src, KEVENT_OP_SET);
	bool exclusive = src->mode & KEVENT_EXCLUSIVE;
	bool may_add = src->there != THERE || src->mode & LEVEL;
	int was = src->there, at = src->at, ret;

	open_descriptor(st, src);
	if (was == GONE) {
		at = pick(me, QUEUES);
		store(&src->at, at);
	}
	ret = set_terms(st, me, src, KEVENT_OP_SET, mode, at);
	expect(st, src, SET, (ret == 1 && (!exclusive || was != THERE)) ||
	       (ret == -EINVAL && exclusive && was != GONE) ||
	       (ret == -ENOSPC && may_add), ret);
}

static void op_named(struct storm *st, struct source *src, __u16 op)
{
	int was = src->there, ret;
	enum op what = op == KEVENT_OP_DEL ? DEL :
		       op == KEVENT_OP_ENABLE ? ENABLE : DISABLE;

	if (is_pollable(src) && !src->open)
		return;
	count_op(st, what);
	if (op == KEVENT_OP_ENABLE) {
		struct record *rec = record_of(src, src->current);

		if (src->current && src->mode & DISPATCH)
			add(&rec->limit, 1);
		add(&src->looks, 1);
		if (was != GONE)
			store(&src->silent, 0);
	}
	ret = kq_apply(&st->q[src->at], named(src, op));
	if (op == KEVENT_OP_DEL)
		is_gone(st, src);
	else if (op == KEVENT_OP_DISABLE)
		silence(st, src);
	expect(st, src, what, was == MAYBE ? ret == 1 || ret == -ENOENT :
	       ret == (was == THERE ? 1 : -ENOENT), ret);
}

static void op_move(struct storm *st, struct actor *me, struct source *src)
{
	int to = (src->at + 1 + pick(me, QUEUES - 1)) % QUEUES;
	struct ukevent change = named(src, KEVENT_OP_MOVE);
	int ret;

	if (is_pollable(src) && !src->open)
		return;
	count_op(st, MOVE);
	change.data = st->q[to].fd;
	ret = kq_apply(&st->q[src->at], change);
	if (ret == 1)
		store(&src->at, to);
	expect(st, src, MOVE, (ret == 1 && src->there != GONE) ||
	       (ret == -ENOENT && src->there != THERE) ||
	       (ret == -ENOSPC && src->there != GONE), ret);
}

/* Ends with its descriptor, though the file stays open, here or in flight. */
static void op_close(struct storm *st, struct actor *me, struct source *src)
{
	int fd = ident_of(src), other;

	if (!src->open)
		return;
	switch (pick(me, 4)) {
	case 0:
		/* Its file is put in its place: nothing has changed. */
		count_op(st, DUP);
		dup3(carrier_of(st, src)->rd, fd, O_CLOEXEC);
		return;
	case 1:
		count_op(st, DUP);
		other = open_eventfd();
		dup3(other, fd, O_CLOEXEC);
		is_gone(st, src);
		close(other);
		close(fd);
		break;
	case 2:
		count_op(st, PASS);
		other = send_fd(me->sock[0], fd);
		close(fd);
		is_gone(st, src);
		if (!other)
			other = receive_fd(me->sock[1]);
		if (other < 0) {
			fault(st, WRONG, src, 0, other);
			break;
		}
		dup3(other, fd, O_CLOEXEC);
		close(other);
		return;
	default:
		count_op(st, CLOSE);
		close(fd);
		is_gone(st, src);
	}
	src->open = false;
}

/* Ends with the queue that it is moved to */
static void op_close_queue(struct storm *st, struct source *src)
{
	struct ukevent change = named(src, KEVENT_OP_MOVE);
	int at = src->at, ret;
	struct kq q;

	if (src->there == GONE || (is_pollable(src) && !src->open) ||
	    kq_open(&q, 4))
		return;
	count_op(st, CLOSE_QUEUE);
	kq_unmap(&q);
	change.data = q.fd;
	ret = kq_apply(&st->q[at], change);
	close(q.fd);
	if (ret == 1)
		is_gone(st, src);
	expect(st, src, CLOSE_QUEUE, ret == 1 ||
	       (ret == -ENOENT && src->there == MAYBE), ret);
}

/*
 * A child registers, and ends while this goes on.  It has the descriptors of its
 * parent, or a copy, and signals of its own in any case.
 */
static void orphan_add(struct storm *st, struct actor *me, struct source *src)
{
	struct carrier *c = carrier_of(st, src);
	/* Who is new to a binder has something to read: to be told that. */
	bool noisy = pick(me, 2) || c->type == BINDER;
	bool share = c->type != EVENTFD;
	__u32 mode = EDGE | (pick(me, 2) ? DISPATCH : 0), serial;
	int at = pick(me, QUEUES), naps = pick(me, 3);
	pid_t pid;

	open_descriptor(st, src);
	/* What the last child wrote */
	if (c->type == EVENTFD)
		carrier_drain(c);
	serial = begin_serial(st, src, mode);
	store(&record_of(src, serial)->quiet, !noisy);
	count_op(st, FORK);
	count_op(st, ADD);
	if (c->type != EVENTFD)
		count_op(st, POLLFREED);
	store(&src->at, at);
	store(&src->added, 0);
	store(&src->silent, 0);
	/* The child shares the source, but its own number is not for there. */
	pid = syscall(__NR_clone, SIGCHLD | (share ? CLONE_FILES : 0), 0, 0, 0, 0);
	if (!pid) {
		int ret = kq_apply(&st->q[at], terms(me, src, KEVENT_OP_ADD,
						     mode, serial));

		store(&src->added, ret + 1000);
		if (noisy && c->type == SIGNALFD)
			syscall(__NR_kill, getpid(), signal_of(st, c));
		else if (noisy && c->type == EVENTFD)
			signal_eventfd(c->wr);
		if (c->type == BINDER && ioctl(c->rd, BINDER_THREAD_EXIT, 0))
			_exit(1);
		for (int i = 0; i < naps; i++)
			sched_yield();
		_exit(0);
	}
	if (pid < 0) {
		store(&src->serial, serial - 1);
		fault(st, WRONG, src, serial, errno);
		return;
	}
	src->child = pid;
	while (!load(&src->added))
		sched_yield();
	end_serial(st, src, src->current);
	src->current = serial;
	src->mode = mode;
	src->there = MAYBE;
	src->child_owns = !share;
	if (src->added != 1001) {
		expect(st, src, FORK, src->added == 1000 - ENOSPC, src->added);
		is_gone(st, src);
	}
}

static void orphan_reap(struct storm *st, struct source *src)
{
	int ret;

	if (!src->child)
		return;
	ret = reap(src->child);
	src->child = 0;
	if (ret)
		fault(st, WRONG, src, src->current, ret);
	if (src->child_owns && src->there)
		is_gone(st, src);
}

static void change_orphan(struct storm *st, struct actor *me,
			  struct source *src)
{
	if (src->there == GONE) {
		orphan_reap(st, src);
		if (!pick(me, 8))
			orphan_add(st, me, src);
		return;
	}
	switch (pick(me, 8)) {
	case 0:
		orphan_reap(st, src);
		break;
	case 1:
		op_named(st, src, KEVENT_OP_DEL);
		break;
	case 2:
		op_named(st, src, KEVENT_OP_DISABLE);
		break;
	case 3:
		op_named(st, src, KEVENT_OP_ENABLE);
		break;
	case 4:
		/* The end of the child ends it, but not before. */
		if (!src->child_owns)
			op_close(st, me, src);
		break;
	default:
		op_move(st, me, src);
	}
}

/* One change.  A child has copies of descriptors, and other signals. */
static void change_one(struct storm *st, struct actor *me, struct source *src)
{
	bool user = !is_pollable(src);

	switch (src->kind) {
	case STEP:
		op_move(st, me, src);
		return;
	case ORPHAN:
		if (!me->foreign)
			change_orphan(st, me, src);
		return;
	case SIGNAL:
		/*
		 * Who looks at a signalfd sees signals of its own.  If another
		 * process collects by the call, it leaves out what the look of a
		 * change has found.
		 */
		if (me->foreign || st->processes) {
			op_move(st, me, src);
			return;
		}
		break;
	default:
		break;
	}
	switch (pick(me, 16)) {
	case 0:
	case 1:
	case 2:
		if (src->kind == FLAGS || src->kind == TICK ||
		    (me->foreign && !user))
			break;
		if (src->there == GONE || src->kind == SHOT || !pick(me, 8))
			op_add(st, me, src);
		else
			op_mod(st, me, src);
		return;
	case 3:
		if (src->kind == FLAGS || src->kind == TICK)
			break;
		op_mod(st, me, src);
		return;
	case 4:
		if (src->kind == FLAGS || src->kind == TICK ||
		    src->kind == SHOT || (me->foreign && !user))
			break;
		op_set(st, me, src);
		return;
	case 5:
		op_named(st, src, KEVENT_OP_DISABLE);
		return;
	case 6:
	case 7:
	case 8:
		op_named(st, src, KEVENT_OP_ENABLE);
		return;
	case 9:
		if (src->kind == MORTAL || src->kind == FREE ||
		    src->kind == NEVER || src->kind == SIGNAL)
			op_named(st, src, KEVENT_OP_DEL);
		return;
	case 10:
		if (!user && !me->foreign)
			op_close(st, me, src);
		else if (src->kind == MORTAL && !pick(me, 8))
			op_close_queue(st, src);
		return;
	default:
		break;
	}
	op_move(st, me, src);
}

/* The changes of a child are its parent's, which waits meanwhile. */
static void op_fork(struct storm *st, struct actor *me)
{
	struct actor child = *me;
	unsigned int what = pick(me, 3);
	pid_t pid;

	count_op(st, FORK);
	pid = fork();
	if (!pid) {
		unsigned int share = st->nr / CHANGERS;

		child.foreign = true;
		if (what == 0)
			syscall(__NR_close_range, REG_FD, REG_FD + MAX_SOURCES, 0);
		for (int i = 0; what == 1 && i < 12; i++)
			change_one(st, &child,
				   &st->sources[me->number + CHANGERS *
						pick(&child, share)]);
		for (int i = 0; what == 2 && i < 12; i++) {
			/* Counts are the first. */
			struct source *src = &st->sources[i % 4];

			add(&src->triggered, 2);
			trigger(st, src, 2, 0);
		}
		_exit(0);
	}
	if (pid < 0 || reap(pid))
		fault(st, WRONG, NULL, 0, pid);
}

/* Another program is handed the queue, and triggers a source of this changer. */
static void op_exec(struct storm *st, struct actor *me)
{
	struct source *src = &st->sources[me->number];
	__u32 args[3] = { src->nr, src->tag, 5 };
	char arg[16];
	pid_t pid;
	int s[2];

	if (src->kind != KEEP || sync_open(s))
		return;
	count_op(st, EXEC);
	add(&src->triggered, args[2]);
	snprintf(arg, sizeof(arg), "%d", s[1]);
	pid = fork();
	if (!pid) {
		fcntl(s[1], F_SETFD, 0);
		execl("/proc/self/exe", "storm", EXEC_ARG, arg, NULL);
		_exit(127);
	}
	close(s[1]);
	if (pid < 0 || send_fd(s[0], st->q[src->at].fd) ||
	    send(s[0], args, sizeof(args), MSG_NOSIGNAL) != sizeof(args))
		fault(st, WRONG, src, 0, errno);
	if (pid > 0) {
		int ret = reap(pid);

		if (ret)
			fault(st, WRONG, src, 0, ret);
	}
	close(s[0]);
}

/* What main() does for op_exec(): trigger one by one. */
static int exec_main(int sock)
{
	int fd = receive_fd(sock);
	__u32 args[3];

	if (fd < 0 || read(sock, args, sizeof(args)) != sizeof(args))
		return 1;
	for (__u32 i = 0; i < args[2]; i++) {
		struct ukevent change = kq_trigger_change(args[0], 1, 0);

		change.tag = args[1];
		if (sys_kevent_ctl(fd, &change, 1, 0) != 1)
			return 2;
	}
	return 0;
}

static void op_interrupt(struct storm *st, struct actor *me)
{
	struct actor *c = &st->consumers[pick(me, CONSUMERS)];

	count_op(st, INTERRUPT);
	if (!c->foreign) {
		pthread_kill(c->thread, SIGUSR1);
		return;
	}
	kill(c->pid, SIGUSR1);
	if (!pick(me, 4)) {
		kill(c->pid, SIGSTOP);
		kill(c->pid, SIGCONT);
	}
}

static void op_grow(struct storm *st)
{
	for (int i = 0; i < QUEUES; i++) {
		__u32 slots = __atomic_load_n(&st->q[i].map.ring->slots,
					      __ATOMIC_RELAXED);
		int ret = kq_grow(&st->q[i], 2 * slots);

		count_op(st, GROW);
		if (ret != 1)
			fault(st, WRONG, NULL, 0, ret);
	}
}

/* Leaves it registered and enabled, if it is of the kinds that stay. */
static void come_to_rest(struct storm *st, struct actor *me,
			 struct source *src)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	bool level = src->kind == FREE && src->nr % 4 == 0;
	int ret;

	switch (src->kind) {
	case SIGNAL:
	case KEEP:
	case FREE:
		if (src->kind == SIGNAL && st->processes)
			break;
		if (src->mode & KEVENT_EXCLUSIVE && src->there != GONE)
			op_named(st, src, KEVENT_OP_DEL);
		open_descriptor(st, src);
		do {
			ret = set_terms(st, me, src, KEVENT_OP_SET,
					level ? LEVEL : EDGE, src->at);
		} while (ret == -ENOSPC && now_ns() < end && !sched_yield());
		expect(st, src, SET, ret == 1, ret);
		break;
	case FLAGS:
	case TICK:
	case SHOT:
		op_named(st, src, KEVENT_OP_ENABLE);
		break;
	case ORPHAN:
		orphan_reap(st, src);
		break;
	default:
		break;
	}
}

static void *changer_fn(void *arg)
{
	struct actor *me = arg;
	struct storm *st = me->st;
	__u64 growth = st->target / (GROWTHS + 1), grown = growth;

	while (!load(&st->stop_changing)) {
		take_what_was_handed_over(st);
		/* So that there is something to change between the changes */
		if (me->steps * EVENTS_PER_STEP * CHANGERS >
		    load(&st->claims) + 500) {
			struct timespec ts = { .tv_nsec = 200000 };

			nanosleep(&ts, NULL);
			continue;
		}
		me->steps++;
		change_one(st, me, &st->sources[me->number + CHANGERS *
			   pick(me, st->nr / CHANGERS)]);
		if (!pick(me, 64))
			op_interrupt(st, me);
		if (!pick(me, 64)) {
			count_op(st, WAKE);
			if (kq_wake(&st->q[pick(me, QUEUES)]) != 1)
				fault(st, WRONG, NULL, 0, 0);
		}
		if (me->steps % STEPS_PER_FORK == STEPS_PER_FORK / 3)
			op_fork(st, me);
		if (me->steps % (4 * STEPS_PER_FORK) == STEPS_PER_FORK / 2)
			op_exec(st, me);
		if (!me->number && growth && load(&st->claims) >= grown &&
		    grown < st->target) {
			grown += growth;
			op_grow(st);
		}
	}
	for (int nr = me->number; nr < st->nr; nr += CHANGERS)
		come_to_rest(st, me, &st->sources[nr]);
	return NULL;
}

/*
 * A round
 */

static void add_source(struct storm *st, enum source_kind kind, int carrier)
{
	struct source *src = &st->sources[st->nr];

	memset(src, 0, sizeof(*src));
	src->kind = kind;
	src->nr = st->nr++;
	src->carrier = carrier;
	src->tag = 0x10000 * kind + 7 * src->nr;
	src->at = src->nr % QUEUES;
}

static int add_carrier(struct storm *st, enum carrier_type type)
{
	if (!carrier_open(st, &st->carriers[st->nr_carriers], type))
		return -1;
	return st->nr_carriers++;
}

static void add_files(struct storm *st, enum source_kind kind, int each,
		      const enum carrier_type *types, int nr)
{
	for (int i = 0; i < nr; i++) {
		int carrier = add_carrier(st, types[i]);

		for (int n = 0; carrier >= 0 && n < each; n++)
			add_source(st, kind, carrier);
	}
}

static void make_sources(struct storm *st)
{
	static const enum carrier_type steps[] = {
		EVENTFD, PIPE, UNIX, TCP, EVENTFD, PIPE, UNIX, TCP,
	};
	static const enum carrier_type frees[] = { EVENTFD, PIPE, UNIX, TCP };
	static const enum carrier_type signals[] = { SIGNALFD, SIGNALFD };
	static const enum carrier_type orphans[] = {
		SIGNALFD, SIGNALFD, EVENTFD, BINDER,
	};
	static const enum carrier_type nevers[] = { EVENTFD, UNIX };

	st->nr = 0;
	st->nr_carriers = 0;
	/* The first, see op_fork() and op_exec() */
	for (int i = 0; i < 12; i++)
		add_source(st, KEEP, -1);
	for (int i = 0; i < 4; i++)
		add_source(st, MORTAL, -1);
	for (int i = 0; i < 2; i++)
		add_source(st, FLAGS, -1);
	for (int i = 0; i < 6; i++)
		add_source(st, SHOT, -1);
	for (int i = 0; i < 2; i++)
		add_source(st, TICK, -1);
	add_source(st, NEVER, -1);
	add_files(st, NEVER, 1, nevers, ARRAY_SIZE(nevers));
	add_files(st, STEP, 1, steps, ARRAY_SIZE(steps));
	add_files(st, FREE, 2, frees, ARRAY_SIZE(frees));
	add_files(st, SIGNAL, 1, signals, ARRAY_SIZE(signals));
	add_files(st, ORPHAN, 1, orphans, ARRAY_SIZE(orphans));
	/* The same for all who have a part of them */
	if (st->nr % 2)
		add_source(st, NEVER, -1);
}

static bool registers_itself(const struct source *src)
{
	return src->kind == ORPHAN || src->kind == SHOT;
}

static bool start(struct storm *st, struct actor *me, int number,
		  void *(*fn)(void *))
{
	pid_t pid;

	me->st = st;
	me->number = number;
	/* The same for this one whoever else there is; never zero */
	me->random = (st->seed + 1000 * ((uintptr_t)me - (uintptr_t)st)) ?: 1;
	me->steps = 0;
	me->has_kept = false;
	if (!me->foreign)
		return !pthread_create(&me->thread, NULL, fn, me);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn(me);
		_exit(0);
	}
	me->pid = pid;
	return pid > 0;
}

/* Waits until nothing is missing, or nothing has come for a long time. */
static bool is_complete(struct storm *st)
{
	__s64 end = now_ns() + st->patience_ms * NSEC_PER_MSEC;

	do {
		int nr = 0;

		take_what_was_handed_over(st);
		while (nr < st->nr && !missing_of(st, &st->sources[nr]))
			nr++;
		if (nr == st->nr)
			return true;
		sleep_ms(1);
	} while (now_ns() < end);
	return false;
}

/* Collects what there is, alone. */
static int collect_rest(struct storm *st, struct actor *me)
{
	int sum = 0, nr;

	for (int i = 0; i < QUEUES; i++) {
		me->q = st->q[i];
		/* Each level-triggered source at most once, so that it ends */
		nr = call(st, me, 0, BATCH);
		sum += nr > 0 ? nr : 0;
	}
	take_what_was_handed_over(st);
	return sum;
}

/*
 * The clock says how often a timer has expired.  When one looks, it can have
 * expired without having said so yet; so what it says has to be waited for.  The
 * first event may have been there before, the second may be of an expiry before
 * the first was claimed, the third cannot.
 */
static void judge_ticks(struct storm *st, struct actor *me, struct source *src)
{
	__s64 end = now_ns() + PATIENCE_MS * NSEC_PER_MSEC;
	__u64 claims = src->claims, sum, least, most;
	__s64 since;

	do {
		since = now_ns();
		collect_rest(st, me);
	} while (src->claims == claims && since < end);
	claims = src->claims;
	while (src->claims < claims + 2 && now_ns() < end)
		collect_rest(st, me);
	sum = src->claimed;
	least = periods(src->started[1], since);
	most = periods(src->started[0], now_ns());
	if (src->claims < claims + 2 || sum < least)
		fault_times(st, LOST, sum < least ? least - sum : 1, src,
			    src->current, sum);
	if (sum > most)
		fault_times(st, DOUBLED, sum - most, src, src->current, sum);
}

static void judge_source(struct storm *st, struct source *src)
{
	__u64 missing = missing_of(st, src);

	/* Two have the same file: it is counted once. */
	if (src->kind == FREE && src->nr && src->carrier ==
	    st->sources[src->nr - 1].carrier)
		return;
	if (missing)
		fault_times(st, LOST, missing, src, src->current, missing);
	if (src->kind == KEEP && src->claimed > src->triggered)
		fault_times(st, DOUBLED, src->claimed - src->triggered, src,
			    src->current, src->claimed);
	if (src->kind == SHOT && src->claims > src->lives)
		fault_times(st, DOUBLED, src->claims - src->lives, src,
			    src->current, src->claims);
}

/* Ends all; each was where it was thought to be, and nowhere else. */
static void end_source(struct storm *st, struct source *src)
{
	for (int i = 0; i < QUEUES; i++) {
		int ret;

		if (is_pollable(src) && !src->open)
			break;
		ret = kq_apply(&st->q[i], named(src, KEVENT_OP_DEL));
		expect(st, src, DEL, (ret == 1 && src->at == i &&
				      src->there != GONE) ||
		       (ret == -ENOENT && (src->at != i ||
					   src->there != THERE)), ret);
	}
	if (src->open)
		close(ident_of(src));
}

static bool setup(struct storm *st, struct actor *me, const __u32 *init_flags,
		  __u32 slots)
{
	for (int i = 0; i < QUEUES; i++)
		if (kq_open_flags(&st->q[i], slots, init_flags[i], 0))
			return false;
	make_sources(st);
	for (int nr = 0; nr < st->nr; nr++) {
		struct source *src = &st->sources[nr];
		__u32 mode = EDGE;
		int ret;

		open_descriptor(st, src);
		if (registers_itself(src)) {
			src->there = GONE;
			silence(st, src);
			continue;
		}
		ret = set_terms(st, me, src, KEVENT_OP_ADD, mode, src->at);
		expect(st, src, ADD, ret == 1, ret);
	}
	return true;
}

static void end_round(struct storm *st, struct actor *me)
{
	for (int nr = 0; nr < st->nr; nr++)
		end_source(st, &st->sources[nr]);
	/* By now the registration whose event was kept has ended, if not before. */
	bring_up_kept(st, me);
	for (int i = 0; i < CONSUMERS; i++)
		bring_up_kept(st, &st->consumers[i]);
	for (int i = 0; i < QUEUES; i++) {
		struct ukevent ev = { };
		struct kq q;

		if (kq_attach(&q, &st->q[i])) {
			fault(st, WRONG, NULL, 0, i);
			continue;
		}
		/* This claims the cancelled slots, too. */
		if (kq_collect(&q, BY_RING, &ev, 1) ||
		    kq_getevents(&q, &ev, 0, 1, 0) || kevent_ring_flags(&q.map))
			fault(st, GHOST, NULL, 0, ev.user_data);
		kq_unmap(&q);
		kq_close(&st->q[i]);
	}
	for (int i = 0; i < st->nr_carriers; i++)
		carrier_close(&st->carriers[i]);
	close(me->sock[0]);
	close(me->sock[1]);
}

/* One storm, from the first registration to the last; false if it cannot be. */
static bool round_of(struct storm *st, __u64 events, const __u32 *init_flags,
		     __u32 slots, int processes)
{
	static const enum collect_by by[CONSUMERS] = {
		BY_RING, BY_RING, BY_SYSCALL, BY_RING, BY_SYSCALL,
	};
	struct actor me = { .st = st, .random = st->seed };
	bool ok = true;

	st->pid = getpid();
	st->target = events;
	store(&st->claims, 0);
	store(&st->produced, 0);
	st->processes = processes;
	st->stop_changing = 0;
	st->stop_consuming = 0;
	st->sabotaged = 0;
	if (sync_open(me.sock) || !setup(st, &me, init_flags, slots))
		return false;
	for (int i = 0; i < CONSUMERS; i++) {
		st->consumers[i].by = by[i];
		/* Processes first: before there are threads */
		st->consumers[i].foreign = i < processes;
		ok &= start(st, &st->consumers[i], i, consumer_fn);
	}
	for (int i = 0; i < CHANGERS; i++) {
		memcpy(st->changers[i].sock, me.sock, sizeof(me.sock));
		if (i)
			ok &= !sync_open(st->changers[i].sock);
		ok &= start(st, &st->changers[i], i, changer_fn);
	}
	for (int i = 0; i < PRODUCERS; i++)
		ok &= start(st, &st->producers[i], i, producer_fn);
	for (int i = 0; i < PRODUCERS; i++)
		pthread_join(st->producers[i].thread, NULL);
	store(&st->stop_changing, 1);
	for (int i = 0; i < CHANGERS; i++) {
		pthread_join(st->changers[i].thread, NULL);
		if (i) {
			close(st->changers[i].sock[0]);
			close(st->changers[i].sock[1]);
		}
	}
	/*
	 * What was looked at last is complete; and so is what comes then, which
	 * nobody looks at without an event.
	 */
	if (is_complete(st)) {
		for (int nr = 0; nr < st->nr; nr++)
			if (st->sources[nr].kind != MORTAL)
				produce(st, &st->sources[nr], 1);
		is_complete(st);
	}
	store(&st->stop_consuming, 1);
	for (int i = 0; i < QUEUES; i++)
		kq_wake(&st->q[i]);
	for (int i = 0; i < CONSUMERS; i++) {
		if (!st->consumers[i].foreign)
			pthread_join(st->consumers[i].thread, NULL);
		else if (reap(st->consumers[i].pid))
			fault(st, WRONG, NULL, 0, i);
	}
	/* What they left tells of what was dealt with already. */
	for (int i = 0; i < 200 && collect_rest(st, &me); i++)
		;
	for (int nr = 0; nr < st->nr; nr++) {
		if (st->sources[nr].kind == TICK)
			judge_ticks(st, &me, &st->sources[nr]);
		judge_source(st, &st->sources[nr]);
	}
	end_round(st, &me);
	return ok;
}

static struct storm *new_storm(struct __test_metadata *_metadata)
{
	struct sigaction sa = { .sa_handler = interrupted };
	struct storm *st;
	sigset_t set;

	st = mmap(NULL, sizeof(*st), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, st);
	sigaction(SIGUSR1, &sa, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* Zero means "never" to what is compared with it. */
	st->clock = 1;
	st->patience_ms = PATIENCE_MS;
	return st;
}

/* The seed is that of the last round: given again, it is the first. */
static void print_result(struct storm *st, __u64 events, __u64 seed)
{
	printf("# events %llu", events);
	for (int i = 0; i < NR_FAULTS; i++)
		printf(", %s %llu", fault_names[i], st->faults[i]);
	printf("; operations:");
	for (int i = 0; i < NR_OPS; i++)
		printf(" %s %llu%s", op_names[i], st->ops[i],
		       i < NR_OPS - 1 ? "," : "");
	printf("; seed %llu\n", seed);
	for (int i = 0; i < st->nr_reports && i < REPORTS; i++) {
		struct report *r = &st->reports[i];

		printf("#   %s: line %d, source %d, kind %d, serial %u, %lld (%#llx)\n",
		       fault_names[r->fault], r->line, r->source,
		       r->source < 0 ? -1 : st->sources[r->source].kind,
		       r->serial, (long long)r->extra, r->extra);
	}
	/* A test does not end with exit(). */
	fflush(stdout);
}

FIXTURE(storm) {
	struct storm *st;
};

FIXTURE_VARIANT(storm) {
	__u32 init_flags[QUEUES];
	__u32 slots;
	int processes;		/* so many consumers are */
};

FIXTURE_VARIANT_ADD(storm, of_threads) { { 0, 0, 0 }, 64, 0 };
FIXTURE_VARIANT_ADD(storm, of_processes) {
	{ 0, KEVENT_INIT_LIFO, 0 }, 64, CONSUMERS
};

FIXTURE_VARIANT_ADD(storm, in_rings_that_are_too_small) {
	{
		KEVENT_INIT_OVERCOMMIT, KEVENT_INIT_OVERCOMMIT,
		KEVENT_INIT_OVERCOMMIT | KEVENT_INIT_LIFO
	}, 1, 2
};

FIXTURE_SETUP(storm)
{
	struct kq q;

	/* So that a kernel without kevent is found out here */
	if (!kq_setup(_metadata, &q, 1))
		return;
	kq_close(&q);
	self->st = new_storm(_metadata);
}

FIXTURE_TEARDOWN(storm)
{
}

/*
 * Whatever is added, modified, moved, disabled, deleted, closed, replaced, passed
 * on, forked, executed, interrupted and grown meanwhile: no event is lost, none
 * comes twice, and none comes that cannot be.
 */
TEST_F_TIMEOUT(storm, loses_nothing_doubles_nothing_and_makes_nothing_up, 7200)
{
	const char *env = getenv("KEVENT_STORM_EVENTS");
	__u64 events = (env ? strtoull(env, NULL, 0) : EVENTS) / VARIANTS;
	struct storm *st = self->st;
	__u64 sum = 0, faults = 0;

	/* A storm that stands still is over long before the test is. */
	alarm(120 + events / 500);
	st->seed = random_seed();
	do {
		__u64 left = events - sum;

		if (sum)
			next_random(&st->seed);
		ASSERT_TRUE(round_of(st, left < ROUND ? left : ROUND,
				     variant->init_flags, variant->slots,
				     variant->processes));
		sum += st->claims;
		for (int i = 0; i < NR_FAULTS; i++)
			faults += st->faults[i];
	} while (!faults && st->claims && sum < events);
	print_result(st, sum, st->seed);
	EXPECT_LE(events, sum);
	for (int i = 0; i < NR_FAULTS; i++) {
		EXPECT_EQ(0, st->faults[i])
			TH_LOG("%s", fault_names[i]);
	}
}

/*
 * The oracle can fail: it notices one event that a consumer forgets, deals with
 * twice, or brings up when the registration has ended.
 */
FIXTURE(oracle) {
	struct storm *st;
};

FIXTURE_VARIANT(oracle) {
	enum sabotage sabotage;
	enum source_kind victim;
	enum fault fault;
};

FIXTURE_VARIANT_ADD(oracle, count_forgotten) { SKIP, KEEP, LOST };
FIXTURE_VARIANT_ADD(oracle, count_doubled) { TWICE, KEEP, DOUBLED };
FIXTURE_VARIANT_ADD(oracle, count_late) { LATE, KEEP, GHOST };
FIXTURE_VARIANT_ADD(oracle, flags_doubled) { TWICE, FLAGS, DOUBLED };
FIXTURE_VARIANT_ADD(oracle, file_forgotten) { SKIP, STEP, LOST };
FIXTURE_VARIANT_ADD(oracle, file_doubled) { TWICE, STEP, DOUBLED };
FIXTURE_VARIANT_ADD(oracle, file_late) { LATE, FREE, GHOST };
FIXTURE_VARIANT_ADD(oracle, timer_forgotten) { SKIP, SHOT, LOST };
FIXTURE_VARIANT_ADD(oracle, timer_doubled) { TWICE, SHOT, DOUBLED };

FIXTURE_SETUP(oracle)
{
	struct kq q;

	if (!kq_setup(_metadata, &q, 1))
		return;
	kq_close(&q);
	self->st = new_storm(_metadata);
}

FIXTURE_TEARDOWN(oracle)
{
}

/* The oracle notices what a consumer forgets, doubles, or brings up too late. */
TEST_F_TIMEOUT(oracle, notices_one_event_that_is_wrong, 60)
{
	static const __u32 init_flags[QUEUES];
	struct storm *st = self->st;

	st->seed = random_seed();
	st->sabotage = variant->sabotage;
	st->victim = variant->victim;
	st->patience_ms = 300;
	ASSERT_TRUE(round_of(st, 1500, init_flags, 64, 0));
	print_result(st, st->claims, st->seed);
	EXPECT_LT(0, st->sabotaged);
	EXPECT_LT(0, st->faults[variant->fault]);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], EXEC_ARG))
		return exec_main(atoi(argv[2]));
	return test_harness_run(argc, argv);
}

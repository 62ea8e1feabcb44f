// SPDX-License-Identifier: MIT
/*
 * Tests of kevq.h on a kernel that has kevent, in C11 and in C++17, printed as TAP.
 *
 * How the consumer goes through a ring is tested on the host; this is about what it
 * needs the kernel for: mappings, system calls, sleeping, and other threads and
 * processes.
 */
#include <kevq.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#define COUNT(array)	(sizeof(array) / sizeof((array)[0]))
#define PATIENCE	KEVQ_SEC(20)

static int failed;

#define CHECK(what)								\
	do {									\
		if (!(what)) {							\
			printf("# %s:%d: %s\n", __FILE__, __LINE__, #what);	\
			failed = 1;						\
			return;							\
		}								\
	} while (0)

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return KEVQ_SEC(time.tv_sec) + time.tv_nsec;
}

/* How many descriptors and mappings there are */
static int open_things(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	int fd, c, things = 0;

	while (maps && (c = getc(maps)) != EOF)
		things += c == '\n';
	if (maps)
		fclose(maps);
	for (fd = 0; fd < 64; fd++)
		things += fcntl(fd, F_GETFD) >= 0;
	return things;
}

static void the_kernel_is_known(void)
{
	CHECK(!kevq_probe());
}

static void errors_are_told_and_nothing_is_left_behind(void)
{
	struct kevq queue, other;
	int before, i;

	for (i = 0; i < 2; i++) {
		before = open_things();
		CHECK(kevq_open(&queue, 0) == -EINVAL);
		CHECK(kevq_attach(&other, 0) < 0);
		CHECK(!kevq_open(&queue, 5));
		CHECK(queue.count == 8);
		CHECK(!kevq_attach(&other, queue.fd));
		kevq_close(&other);
		CHECK(kevq_add(&queue, 99, EPOLLIN, 0) == -EBADF);
		CHECK(kevq_trigger(&queue, 1, 1) == -ENOENT);
		kevq_close(&queue);
		CHECK(queue.fd == -1);
	}
	CHECK(before == open_things());
}

static void files_are_reported(void)
{
	struct kevq_event events[4];
	struct kevq queue;
	int ends[2];

	CHECK(!kevq_open(&queue, 4) && !pipe(ends));
	CHECK(!kevq_add(&queue, ends[0], EPOLLIN, ~(uint64_t)6));
	CHECK(kevq_add(&queue, ends[0], EPOLLIN, 7) == -EEXIST);
	CHECK(kevq_poll(&queue, events, 4, 0) == 0);
	CHECK(write(ends[1], "x", 1) == 1);
	CHECK(kevq_claim(&queue, events, 4) == 1);
	CHECK(events[0].user_data == ~(uint64_t)6 && events[0].ident == (uint64_t)ends[0]);
	CHECK(events[0].source == KEVENT_SOURCE_FD && events[0].value & EPOLLIN);
	CHECK(!kevq_mod(&queue, ends[0], EPOLLIN, 8));
	CHECK(kevq_poll(&queue, events, 4, PATIENCE) == 1 && events[0].user_data == 8);
	CHECK(write(ends[1], "x", 1) == 1);
	CHECK(!kevq_del(&queue, ends[0]));
	CHECK(kevq_poll(&queue, events, 4, 0) == 0);
	CHECK(kevq_del(&queue, ends[0]) == -ENOENT);
	close(ends[0]);
	close(ends[1]);
	kevq_close(&queue);
}

static void changes_come_in_batches(void)
{
	struct ukevent changes[3] = {
		kevq_user(1, KEVENT_USER_COUNT, 11),
		kevq_change(KEVENT_OP_DEL, KEVENT_SOURCE_USER, 2),
		kevq_user(3, KEVENT_USER_FLAGS, 13),
	};
	struct kevq_event events[4];
	struct kevq queue;

	CHECK(!kevq_open(&queue, 4));
	CHECK(kevq_ctl(&queue, changes, 3, 0) == 1);
	CHECK(kevq_ctl(&queue, changes, 3, KEVENT_CTL_RESULTS) == 1);
	CHECK(changes[0].result == -EEXIST && changes[1].result == -ENOENT);
	CHECK(!changes[2].result);
	changes[2] = kevq_change(KEVENT_OP_TRIGGER, KEVENT_SOURCE_USER, 3);
	changes[2].fflags = KEVENT_NOTE_TRIGGER | KEVENT_NOTE_FFCOPY | 5;
	CHECK(!kevq_apply(&queue, changes[2]));
	CHECK(!kevq_trigger(&queue, 1, 40) && !kevq_trigger(&queue, 1, 2));
	CHECK(kevq_poll(&queue, events, 4, PATIENCE) == 2);
	CHECK(events[0].user_data == 13 && events[0].value == (KEVENT_NOTE_TRIGGER | 5));
	CHECK(events[1].user_data == 11 && events[1].value == 42);
	kevq_close(&queue);
}

static void nothing(int signal)
{
	(void)signal;
}

static void waits_end_in_time_or_for_a_signal(void)
{
	struct kevq_event event;
	struct sigaction action;
	struct itimerval soon;
	struct kevq queue;
	int64_t start = now();

	CHECK(!kevq_open(&queue, 1));
	CHECK(kevq_poll(&queue, &event, 1, KEVQ_MS(30)) == 0);
	CHECK(now() - start >= KEVQ_MS(30));
	CHECK(kevq_wait(&queue, 1, 0) == 0);
	CHECK(kevq_poll(&queue, &event, 0, 0) == -EINVAL);

	memset(&action, 0, sizeof(action));
	action.sa_handler = nothing;
	CHECK(!sigaction(SIGALRM, &action, NULL));
	memset(&soon, 0, sizeof(soon));
	soon.it_value.tv_usec = soon.it_interval.tv_usec = 20000;
	CHECK(!setitimer(ITIMER_REAL, &soon, NULL));
	CHECK(kevq_poll(&queue, &event, 1, PATIENCE) == -EINTR);
	memset(&soon, 0, sizeof(soon));
	CHECK(!setitimer(ITIMER_REAL, &soon, NULL));

	CHECK(!kevq_apply(&queue, kevq_timer(0, KEVQ_MS(5), 0, 9)));
	CHECK(kevq_poll(&queue, &event, 1, KEVQ_FOREVER) == 1);
	CHECK(event.user_data == 9 && event.value == 1);
	kevq_close(&queue);
}

static void *waker(void *queue)
{
	/* Again and again: that the other thread is asleep cannot be known. */
	while (!kevq_wake((const struct kevq *)queue))
		usleep(1000);
	return NULL;
}

static void a_thread_can_be_woken(void)
{
	struct kevq_event event;
	struct kevq queue, dead;
	pthread_t thread;

	CHECK(!kevq_open(&queue, 1));
	dead = queue;
	dead.fd = dup(queue.fd);
	CHECK(!pthread_create(&thread, NULL, waker, &dead));
	CHECK(kevq_poll(&queue, &event, 1, KEVQ_FOREVER) == 0);
	close(dead.fd);
	dead.fd = -1;
	CHECK(!pthread_join(thread, NULL));
	kevq_close(&queue);
}

static void a_ring_that_grows_is_followed(void)
{
	struct kevq_event events[64];
	struct kevq queue, other;
	unsigned int i;

	CHECK(!kevq_open(&queue, 1) && !kevq_attach(&other, queue.fd));
	for (i = 0; i < 64; i++) {
		if (i && !(i & (i - 1)))
			CHECK(!kevq_grow(&queue, 2 * i));
		CHECK(!kevq_apply(&queue, kevq_user(i, KEVENT_USER_COUNT, i)));
		CHECK(!kevq_trigger(&queue, i, i + 1));
	}
	CHECK(kevq_grow(&queue, 2) == -EINVAL);
	CHECK(kevq_claim(&queue, events, 64) == 64);
	for (i = 0; i < 64; i++)
		CHECK(events[i].user_data == i && events[i].value == i + 1);
	CHECK(queue.count == 64);
	/* One that was away meanwhile, and one that comes now */
	CHECK(!kevq_trigger(&queue, 7, 1));
	CHECK(kevq_poll(&other, events, 64, PATIENCE) == 1 && events[0].ident == 7);
	kevq_close(&other);
	CHECK(!kevq_attach(&other, queue.fd));
	CHECK(!kevq_trigger(&queue, 8, 1));
	CHECK(kevq_claim(&other, events, 64) == 1 && events[0].ident == 8);
	kevq_close(&other);
	kevq_close(&queue);
}

static void a_ring_that_is_too_small_loses_nothing(void)
{
	struct kevent_params params;
	struct kevq_event events[16];
	unsigned int i, sum = 0;
	struct kevq queue;
	int got;

	memset(&params, 0, sizeof(params));
	params.slots = 1;
	CHECK(!kevq_open(&queue, 1));
	CHECK(!kevq_apply(&queue, kevq_user(0, KEVENT_USER_COUNT, 0)));
	CHECK(kevq_apply(&queue, kevq_user(1, KEVENT_USER_COUNT, 0)) == -ENOSPC);
	kevq_close(&queue);

	params.flags = KEVENT_INIT_OVERCOMMIT;
	CHECK(!kevq_open_params(&queue, &params));
	for (i = 0; i < 500; i++) {
		CHECK(!kevq_apply(&queue, kevq_user(i, KEVENT_USER_COUNT, i)));
		CHECK(!kevq_trigger(&queue, i, 1));
	}
	while ((got = kevq_poll(&queue, events, 16, 0)) > 0)
		for (i = 0; i < (unsigned int)got; i++)
			CHECK(events[i].user_data == sum++);
	CHECK(sum == 500);
	kevq_close(&queue);
}

static void what_is_level_triggered_does_not_starve(void)
{
	struct kevq_event events[8];
	int ends[2], i, n, level = 0, edge = 0;
	struct ukevent input;
	struct kevq queue;

	CHECK(!kevq_open(&queue, 1) && !pipe(ends));
	input = kevq_file(ends[0], EPOLLIN, 1);
	input.flags = KEVENT_LEVEL;
	CHECK(!kevq_apply(&queue, input));
	CHECK(!kevq_apply(&queue, kevq_user(2, KEVENT_USER_COUNT, 2)));
	CHECK(write(ends[1], "x", 1) == 1);
	for (i = 0; i < 20; i++) {
		CHECK(!kevq_trigger(&queue, 2, 1));
		n = kevq_poll(&queue, events, 1 + (unsigned int)i % 2, PATIENCE);
		CHECK(n > 0);
		while (n--) {
			if (events[n].user_data == 1)
				level++;
			else
				edge++;
		}
	}
	CHECK(level >= 10 && edge >= 10);
	close(ends[0]);
	close(ends[1]);
	kevq_close(&queue);
}

#define SOURCES	16u
#define ROUNDS	500u

struct race {
	int fd;
	uint32_t sum;
};

static void *collector(void *data)
{
	struct race *race = (struct race *)data;
	struct kevq_event events[5];
	struct kevq queue;
	int i, n;

	if (kevq_attach(&queue, race->fd))
		return NULL;
	while (__atomic_load_n(&race->sum, __ATOMIC_RELAXED) < SOURCES * ROUNDS) {
		n = kevq_poll(&queue, events, COUNT(events), KEVQ_MS(200));
		for (i = 0; i < n; i++)
			__atomic_fetch_add(&race->sum, events[i].value, __ATOMIC_RELAXED);
	}
	kevq_close(&queue);
	return NULL;
}

static void threads_and_a_child_share_the_work(void)
{
	struct race race;
	unsigned int i, source;
	struct kevq queue;
	pthread_t threads[2];
	int status;
	pid_t child;

	CHECK(!kevq_open(&queue, SOURCES));
	for (source = 0; source < SOURCES; source++)
		CHECK(!kevq_apply(&queue, kevq_user(source, KEVENT_USER_COUNT, source)));
	race.fd = queue.fd;
	race.sum = 0;
	/* The child triggers, by a queue that it has inherited, and then grows the ring. */
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		for (i = 0; i < ROUNDS; i++) {
			for (source = 0; source < SOURCES; source++)
				if (kevq_trigger(&queue, source, 1))
					_exit(1);
			if (i == ROUNDS / 2 && kevq_grow(&queue, 4 * SOURCES))
				_exit(2);
		}
		_exit(0);
	}
	for (i = 0; i < COUNT(threads); i++)
		CHECK(!pthread_create(&threads[i], NULL, collector, &race));
	for (i = 0; i < COUNT(threads); i++)
		CHECK(!pthread_join(threads[i], NULL));
	CHECK(race.sum == SOURCES * ROUNDS);
	CHECK(waitpid(child, &status, 0) == child && !status);
	kevq_close(&queue);
}

#define TEST(name)	{ #name, name }

int main(void)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		TEST(the_kernel_is_known),
		TEST(errors_are_told_and_nothing_is_left_behind),
		TEST(files_are_reported),
		TEST(changes_come_in_batches),
		TEST(waits_end_in_time_or_for_a_signal),
		TEST(a_thread_can_be_woken),
		TEST(a_ring_that_grows_is_followed),
		TEST(a_ring_that_is_too_small_loses_nothing),
		TEST(what_is_level_triggered_does_not_starve),
		TEST(threads_and_a_child_share_the_work),
	};
	unsigned int i, bad = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("1..%u\n", (unsigned int)COUNT(tests));
	for (i = 0; i < COUNT(tests); i++) {
		failed = 0;
		tests[i].run();
		bad += (unsigned int)failed;
		printf("%sok %u %s\n", failed ? "not " : "", i + 1, tests[i].name);
	}
	return bad ? 1 : 0;
}

// SPDX-License-Identifier: MIT
/*
 * Events that programs trigger: threads count, and what they count arrives in as few
 * events as the reader can keep up with.
 */
#include <kevq.h>
#include <pthread.h>
#include <stdio.h>

#define THREADS	4
#define ROUNDS	1000
#define WORK	7

static void *work(void *queue)
{
	int i;

	for (i = 0; i < ROUNDS; i++)
		kevq_trigger((const struct kevq *)queue, WORK, 1);
	return NULL;
}

int main(void)
{
	unsigned int done = 0, i, n;
	struct kevq_event events[8];
	pthread_t threads[THREADS];
	struct kevq queue;
	int err;

	err = kevq_open(&queue, 8);
	if (!err)
		err = kevq_apply(&queue, kevq_user(WORK, KEVENT_USER_COUNT, 0));
	if (err) {
		fprintf(stderr, "kevent: %s\n", strerror(-err));
		return 1;
	}
	for (i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, work, &queue))
			return 1;
	while (done < THREADS * ROUNDS) {
		int got = kevq_poll(&queue, events, 8, KEVQ_FOREVER);

		n = got < 0 ? 0 : (unsigned int)got;
		for (i = 0; i < n; i++)
			done += events[i].value;
	}
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	printf("%u pieces of work were done\n", done);
	kevq_close(&queue);
	return 0;
}

// SPDX-License-Identifier: MIT
/*
 * Echo server on TCP: what a whole event loop looks like.
 *
 *	echo PORT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* accept4() */
#endif
#include <arpa/inet.h>
#include <kevq.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

/* Events tell of changes: goes on until there is nothing more to read. */
static void echo(int fd)
{
	char data[4096];
	ssize_t len;

	while ((len = recv(fd, data, sizeof(data), 0)) > 0)
		if (send(fd, data, (size_t)len, MSG_NOSIGNAL) != len)
			break; /* a real server keeps it, and waits for EPOLLOUT */
	if (len >= 0 || errno != EAGAIN)
		close(fd); /* that ends the registration */
}

static void greet(const struct kevq *queue, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		if (kevq_add(queue, fd, EPOLLIN | EPOLLRDHUP, (uint64_t)fd))
			close(fd);
}

static int listen_on(int port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in at;

	memset(&at, 0, sizeof(at));
	at.sin_family = AF_INET;
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons((uint16_t)port);
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 128)) {
		perror("listen");
		exit(1);
	}
	return fd;
}

int main(int argc, char **argv)
{
	int listener = listen_on(argc > 1 ? atoi(argv[1]) : 7777);
	struct kevq_event events[64];
	struct kevq queue;
	int err, i, n;

	err = kevq_open(&queue, 1024);
	if (err || (err = kevq_add(&queue, listener, EPOLLIN, (uint64_t)listener))) {
		fprintf(stderr, "kevent: %s\n", strerror(-err));
		return 1;
	}
	while ((n = kevq_poll(&queue, events, 64, KEVQ_FOREVER)) >= 0 || n == -EINTR) {
		for (i = 0; i < n; i++) {
			if ((int)events[i].user_data == listener)
				greet(&queue, listener);
			else
				echo((int)events[i].user_data);
		}
	}
	fprintf(stderr, "kevent: %s\n", strerror(-n));
	kevq_close(&queue);
	return 1;
}

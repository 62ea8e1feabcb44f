// SPDX-License-Identifier: MIT
/*
 * The consumer of kevq.h, as functions for consumer.rs; what it is built upon is there.
 */
#define KEVQ_TEST_BACKEND
#include "kevq.h"

_Static_assert(sizeof(struct kevq_event) == 32, "layout");
_Static_assert(offsetof(struct kevq_event, value) == 24, "layout");

size_t kevq_shim_size(void);
int kevq_shim_begin(struct kevq *q, uint32_t count);
unsigned int kevq_shim_claim(struct kevq *q, struct kevq_event *events, unsigned int max);
int kevq_shim_poll(struct kevq *q, struct kevq_event *events, unsigned int max, int64_t timeout);
int kevq_shim_wait(const struct kevq *q, unsigned int min, int64_t timeout);

size_t kevq_shim_size(void)
{
	return sizeof(struct kevq) << 8 | sizeof(struct kevq_event);
}

int kevq_shim_begin(struct kevq *q, uint32_t count)
{
	return kevq_go_(q, count);
}

unsigned int kevq_shim_claim(struct kevq *q, struct kevq_event *events, unsigned int max)
{
	return kevq_claim(q, events, max);
}

int kevq_shim_poll(struct kevq *q, struct kevq_event *events, unsigned int max, int64_t timeout)
{
	return kevq_poll(q, events, max, timeout);
}

int kevq_shim_wait(const struct kevq *q, unsigned int min, int64_t timeout)
{
	return kevq_wait(q, min, timeout);
}

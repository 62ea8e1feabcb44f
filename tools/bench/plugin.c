// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A QEMU plugin that counts, between marks in the guest's code: instructions,
 * locked ones, loads, stores, and distinct cache lines of data.
 *
 * The marks are those of bench.c.  Between MARK_WRITE and MARK_COLLECT is the
 * producer, from there to MARK_END the consumer.  Each time that MARK_ROW is
 * passed, and at the end, it prints the smallest numbers of the row before:
 *
 *	kevent-marks WHO insns=N locked=N loads=N stores=N lines=N shared=N
 *
 * and, for each instruction that was executed there, in this one repetition,
 *
 *	kevent-at WHO ADDRESS TIMES
 *
 * WHO is producer or consumer.  "shared" are lines that one of the two wrote and
 * the other one touched: what would go from one CPU to another.  Lines are counted
 * by their physical address, as the ring is mapped twice.
 *
 * No package of Debian 12 has qemu-plugin.h, so the part that is used is declared
 * here, as version 1 of the interface has it; QEMU refuses a plugin of a version
 * that it does not have.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* QEMU's interface for plugins, version 1 */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
struct qemu_info;
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef void (*tb_trans_cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*insn_cb)(unsigned int vcpu, void *data);
typedef void (*mem_cb)(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *data);
typedef void (*exit_cb)(qemu_plugin_id_t id, void *data);
enum { QEMU_PLUGIN_CB_NO_REGS };
enum { QEMU_PLUGIN_MEM_RW = 3 };
enum { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, insn_cb cb, int flags,
					    void *data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn, int op, void *to,
						uint64_t number);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, mem_cb cb, int flags, int rw,
				      void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, exit_cb cb, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t info, uint64_t vaddr);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *addr);
void qemu_plugin_outs(const char *text);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { PRODUCER, CONSUMER, SIDES };

static const char *const names[SIDES] = { "producer", "consumer" };

struct counts {
	uint64_t insns, locked, loads, stores, lines, shared;
};

/* An open hash table of lines: who touched, and who wrote it in this repetition */
#define LINES (1 << 16)

static struct line {
	uint64_t number;
	uint32_t repetition;
	bool touched[SIDES], wrote[SIDES];
} lines[LINES];

/* An instruction, once for each time that it was translated; a list of those of a repetition */
struct site {
	uint64_t address;
	struct site *next;
	uint32_t repetition;
	uint32_t times[SIDES];
};

static struct site *sites;

/* Those of the least repetition */
#define SITES (1 << 16)

static struct site least_sites[SITES];
static size_t nr_least_sites;

static uint64_t executed;
static uint32_t repetition;
/* The side that is being counted, or -1 */
static int side = -1;
static struct counts current[SIDES], least[SIDES];
static bool any;

static struct line *find(uint64_t number)
{
	uint64_t at = number * 0x9e3779b97f4a7c15ULL >> 48;

	while (lines[at].repetition == repetition && lines[at].number != number)
		at = (at + 1) % LINES;
	if (lines[at].repetition != repetition)
		lines[at] = (struct line){ .number = number, .repetition = repetition };
	return &lines[at];
}

static void on_memory(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *data)
{
	struct qemu_plugin_hwaddr *addr;
	bool store = qemu_plugin_mem_is_store(info);
	struct line *line;

	if (side < 0)
		return;
	addr = qemu_plugin_get_hwaddr(info, vaddr);
	line = find((addr ? qemu_plugin_hwaddr_phys_addr(addr) : vaddr) >> 6);
	if (!line->touched[side]) {
		line->touched[side] = true;
		current[side].lines++;
	}
	line->wrote[side] |= store;
	*(store ? &current[side].stores : &current[side].loads) += 1;
}

static void on_insn(unsigned int vcpu, void *data)
{
	struct site *site = data;

	if (side < 0)
		return;
	if (site->repetition != repetition) {
		site->repetition = repetition;
		memset(site->times, 0, sizeof(site->times));
		site->next = sites;
		sites = site;
	}
	site->times[side]++;
}

static void keep_sites(void)
{
	nr_least_sites = 0;
	for (struct site *site = sites; site && nr_least_sites < SITES; site = site->next)
		least_sites[nr_least_sites++] = *site;
}

static void on_locked(unsigned int vcpu, void *data)
{
	if (side >= 0)
		current[side].locked++;
}

static void stop(void)
{
	/* The mark itself is not counted. */
	if (side >= 0)
		current[side].insns = executed - current[side].insns - 1;
}

static void start(int which)
{
	side = which;
	current[which] = (struct counts){ .insns = executed };
}

static void print(void)
{
	char text[256];

	for (int i = 0; any && i < SIDES; i++) {
		snprintf(text, sizeof(text), "kevent-marks %s insns=%lu locked=%lu loads=%lu "
			 "stores=%lu lines=%lu shared=%lu\n", names[i], least[i].insns,
			 least[i].locked, least[i].loads, least[i].stores, least[i].lines,
			 least[i].shared);
		qemu_plugin_outs(text);
		for (size_t j = 0; j < nr_least_sites; j++) {
			const struct site *site = &least_sites[j];

			if (!site->times[i])
				continue;
			snprintf(text, sizeof(text), "kevent-at %s %lx %u\n", names[i],
				 site->address, site->times[i]);
			qemu_plugin_outs(text);
		}
	}
}

static void end_of_repetition(void)
{
	for (size_t i = 0; i < LINES; i++) {
		struct line *line = &lines[i];

		if (line->repetition == repetition &&
		    ((line->wrote[PRODUCER] && line->touched[CONSUMER]) ||
		     (line->wrote[CONSUMER] && line->touched[PRODUCER]))) {
			current[PRODUCER].shared++;
			current[CONSUMER].shared++;
		}
	}
	/* As a whole: the one without a timer tick. */
	if (!any || current[PRODUCER].insns + current[CONSUMER].insns <
	    least[PRODUCER].insns + least[CONSUMER].insns) {
		memcpy(least, current, sizeof(least));
		keep_sites();
	}
	any = true;
	sites = NULL;
	repetition++;
}

static void on_mark(unsigned int vcpu, void *data)
{
	switch ((uintptr_t)data) {
	case 1:
		print();
		any = false;
		break;
	case 2:
		start(PRODUCER);
		break;
	case 3:
		stop();
		start(CONSUMER);
		break;
	case 4:
		stop();
		side = -1;
		end_of_repetition();
		break;
	}
}

/* The number of the mark that an instruction is, "nopl NUMBER(%rax)"; or 0 */
static uintptr_t mark_of(const uint8_t *code, size_t size)
{
	static const uint8_t mark[] = { 0x0f, 0x1f, 0x80 };

	return size == 7 && !memcmp(code, mark, 3) && !memcmp(code + 4, "VEK", 3) ? code[3] : 0;
}

/* By a prefix, or because it exchanges a register with memory. */
static bool is_locked(const uint8_t *code, size_t size)
{
	size_t at = 0;

	for (; at < size; at++) {
		if (code[at] == 0xf0)
			return true;
		if (code[at] != 0x66 && code[at] != 0xf2 && code[at] != 0xf3 && code[at] != 0x65 &&
		    code[at] != 0x64 && code[at] != 0x2e && code[at] != 0x3e &&
		    (code[at] & 0xf0) != 0x40)
			break;
	}
	return at + 1 < size && (code[at] & 0xfe) == 0x86 && code[at + 1] >> 6 != 3;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t n = qemu_plugin_tb_n_insns(tb);

	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const uint8_t *code = qemu_plugin_insn_data(insn);
		size_t size = qemu_plugin_insn_size(insn);
		uintptr_t mark = mark_of(code, size);
		qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64,
							   &executed, 1);
		qemu_plugin_register_vcpu_mem_cb(insn, on_memory, QEMU_PLUGIN_CB_NO_REGS,
						 QEMU_PLUGIN_MEM_RW, NULL);
		if (is_locked(code, size))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_locked,
							       QEMU_PLUGIN_CB_NO_REGS, NULL);
		if (mark) {
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark,
							       QEMU_PLUGIN_CB_NO_REGS,
							       (void *)mark);
		} else {
			struct site *site = calloc(1, sizeof(*site));

			site->address = qemu_plugin_insn_vaddr(insn);
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_insn,
							       QEMU_PLUGIN_CB_NO_REGS, site);
		}
	}
}

static void on_exit_of_qemu(qemu_plugin_id_t id, void *data)
{
	print();
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv)
{
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
	/* Lines of repetition 0 are those of no repetition. */
	repetition = 1;
	return 0;
}

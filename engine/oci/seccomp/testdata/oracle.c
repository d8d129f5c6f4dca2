// What libseccomp makes of a profile: reads profiles from standard input, and writes for each the number of
// each name on each architecture (negative where it has none), the largest, and the program.
//
//   profile NATIVE ACTION RULES    NATIVE is an architecture as libseccomp names it; RULES their count
//   arch NAME
//   rule ACTION NAME CONDITIONS {INDEX OP A B}
//   name NAME                      known to the profile, and without effect
//   end

#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what, int rc) {
	fprintf(stderr, "%s: %s\n", what, strerror(-rc));
	exit(1);
}

static scmp_filter_ctx ctx;
static uint32_t archs[16];
static char arch_names[16][16];
static int nr_archs, largest[16];

static void seen(const char *name) {
	for (int i = 0; i < nr_archs; i++) {
		int nr = seccomp_syscall_resolve_name_arch(archs[i], name);
		if (nr != __NR_SCMP_ERROR && nr > largest[i])
			largest[i] = nr;
		printf("number %s %s %d\n", arch_names[i], name, nr);
	}
}

static void add_arch(const char *name) {
	uint32_t a = seccomp_arch_resolve_name(name);
	for (int i = 0; i < nr_archs; i++)
		if (archs[i] == a)
			return;
	int rc = seccomp_arch_add(ctx, a);
	if (rc != 0 && rc != -EEXIST)
		die(name, rc);
	strcpy(arch_names[nr_archs], name);
	largest[nr_archs] = 0;
	archs[nr_archs++] = a;
}

static void finish(void) {
	for (int i = 0; i < nr_archs; i++)
		printf("largest %s %d\n", arch_names[i], largest[i]);
	FILE *f = tmpfile();
	int rc = seccomp_export_bpf(ctx, fileno(f));
	if (rc != 0)
		die("export", rc);
	struct { uint16_t code; uint8_t jt, jf; uint32_t k; } insn;
	rewind(f);
	lseek(fileno(f), 0, SEEK_SET);
	while (fread(&insn, sizeof insn, 1, f) == 1)
		printf("insn %u %u %u %u\n", insn.code, insn.jt, insn.jf, insn.k);
	fclose(f);
	printf("end\n");
	seccomp_release(ctx);
}

int main(void) {
	char word[32], name[128];
	unsigned action, n, rules;
	int rc;

	seccomp_api_set(4); // for KILL_PROCESS and LOG as rules, whatever this kernel has
	while (scanf("%31s", word) == 1) {
		if (!strcmp(word, "profile")) {
			if (scanf("%127s %u %u", name, &action, &rules) != 3)
				die("profile", -EINVAL);
			ctx = seccomp_init(action);
			if (!ctx)
				die("init", -ENOMEM);
			nr_archs = 0;
			uint32_t native = seccomp_arch_resolve_name(name);
			add_arch(name);
			if (native != seccomp_arch_native() && (rc = seccomp_arch_remove(ctx, seccomp_arch_native())))
				die("remove native", rc);
			if (rules > 32)
				seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
		} else if (!strcmp(word, "arch")) {
			if (scanf("%127s", name) != 1)
				die("arch", -EINVAL);
			add_arch(name);
		} else if (!strcmp(word, "name")) {
			if (scanf("%127s", name) != 1)
				die("name", -EINVAL);
			seen(name);
		} else if (!strcmp(word, "rule")) {
			struct scmp_arg_cmp args[6];
			if (scanf("%u %127s %u", &action, name, &n) != 3 || n > 6)
				die("rule", -EINVAL);
			for (unsigned i = 0; i < n; i++) {
				unsigned index, op;
				unsigned long long a, b;
				if (scanf("%u %u %llu %llu", &index, &op, &a, &b) != 4)
					die("condition", -EINVAL);
				args[i] = (struct scmp_arg_cmp){index, op, a, b};
			}
			int nr = seccomp_syscall_resolve_name(name);
			seen(name);
			if (nr == __NR_SCMP_ERROR)
				continue;
			rc = seccomp_rule_add_array(ctx, action, nr, n, args);
			if (rc != 0)
				die(name, rc);
		} else if (!strcmp(word, "end")) {
			finish();
		}
	}
	return 0;
}

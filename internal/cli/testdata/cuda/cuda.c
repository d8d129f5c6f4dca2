// A program that uses CUDA without its toolkit: the driver's library is opened at run time, and a kernel is compiled by it.
// It tells what it has found, adds one to some numbers on each GPU, and holds the memory for as many seconds as it is told.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*call)();

static void *library;

static call find(const char *name) {
	call f = (call)dlsym(library, name);
	if (!f) {
		printf("no %s\n", name);
		exit(4);
	}
	return f;
}

static void ok(const char *what, int result) {
	if (result) {
		printf("%s: error %d\n", what, result);
		exit(5);
	}
}

static const char kernel[] =
	".version 6.3\n.target sm_70\n.address_size 64\n"
	".visible .entry inc(.param .u64 p) {\n"
	".reg .u64 %rd<5>;\n.reg .u32 %r<3>;\n"
	"mov.u32 %r1, %tid.x;\nld.param.u64 %rd1, [p];\ncvta.to.global.u64 %rd2, %rd1;\n"
	"mul.wide.u32 %rd3, %r1, 4;\nadd.u64 %rd4, %rd2, %rd3;\n"
	"ld.global.u32 %r2, [%rd4];\nadd.u32 %r2, %r2, 1;\nst.global.u32 [%rd4], %r2;\nret;\n}\n";

int main(int argc, char **argv) {
	library = dlopen("libcuda.so.1", RTLD_NOW);
	if (!library) {
		printf("no library: %s\n", dlerror());
		return 3;
	}
	ok("cuInit", find("cuInit")(0));
	int count = 0, version = 0;
	ok("cuDriverGetVersion", find("cuDriverGetVersion")(&version));
	ok("cuDeviceGetCount", find("cuDeviceGetCount")(&count));
	printf("CUDA %d.%d, %d GPUs\n", version / 1000, version % 1000 / 10, count);
	enum { numbers = 32, bytes = 64 << 20 };
	for (int i = 0; i < count; i++) {
		int device;
		unsigned char id[16];
		char name[100];
		ok("cuDeviceGet", find("cuDeviceGet")(&device, i));
		ok("cuDeviceGetUuid", find("cuDeviceGetUuid")(id, device));
		ok("cuDeviceGetName", find("cuDeviceGetName")(name, (int)sizeof name, device));
		printf("GPU-");
		for (int j = 0; j < 16; j++)
			printf("%s%02x", j == 4 || j == 6 || j == 8 || j == 10 ? "-" : "", id[j]);
		printf(" %s\n", name);
		void *context, *module, *function;
		unsigned long long memory;
		ok("cuDevicePrimaryCtxRetain", find("cuDevicePrimaryCtxRetain")(&context, device));
		ok("cuCtxSetCurrent", find("cuCtxSetCurrent")(context));
		ok("cuMemAlloc", find("cuMemAlloc_v2")(&memory, (size_t)bytes));
		unsigned in[numbers], out[numbers];
		for (unsigned j = 0; j < numbers; j++)
			in[j] = 1000 * i + j;
		ok("cuMemcpyHtoD", find("cuMemcpyHtoD_v2")(memory, in, (size_t)sizeof in));
		ok("cuModuleLoadData", find("cuModuleLoadData")(&module, kernel));
		ok("cuModuleGetFunction", find("cuModuleGetFunction")(&function, module, "inc"));
		void *args[] = {&memory};
		ok("cuLaunchKernel", find("cuLaunchKernel")(function, 1, 1, 1, numbers, 1, 1, 0, (void *)0, args, (void *)0));
		ok("cuCtxSynchronize", find("cuCtxSynchronize")());
		ok("cuMemcpyDtoH", find("cuMemcpyDtoH_v2")(out, memory, (size_t)sizeof out));
		for (unsigned j = 0; j < numbers; j++)
			if (out[j] != in[j] + 1) {
				printf("number %u is %u, want %u\n", j, out[j], in[j] + 1);
				return 6;
			}
		printf("computed\n");
	}
	fflush(stdout);
	if (argc > 1)
		sleep(atoi(argv[1]));
	return 0;
}

// What stands for NVIDIA's libcuda.so.1 where GPUs do not exist: it opens the driver's nodes, takes the UUIDs from what
// berth has told the container, and computes on the processor.
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) {
	(void)flags;
	glob_t found;
	if (open("/dev/nvidiactl", O_RDWR) < 0 || glob("/dev/nvidia[0-9]*", 0, 0, &found))
		return 100; // no device
	for (size_t i = 0; i < found.gl_pathc; i++)
		if (open(found.gl_pathv[i], O_RDWR | O_NONBLOCK) < 0)
			return 101;
	return 0;
}

int cuDriverGetVersion(int *version) {
	*version = 12040;
	return 0;
}

int cuDeviceGetCount(int *count) {
	glob_t found;
	*count = glob("/dev/nvidia[0-9]*", 0, 0, &found) ? 0 : (int)found.gl_pathc;
	return 0;
}

int cuDeviceGet(int *device, int i) {
	*device = i;
	return 0;
}

int cuDeviceGetUuid(unsigned char *id, int device) {
	const char *at = getenv("BERTH_GPUS");
	for (; at && device; device--)
		at = strchr(at, ',') ? strchr(at, ',') + 1 : 0;
	if (!at)
		return 101;
	at += 4; // GPU-
	for (int i = 0; i < 16; i++, at += 2) {
		if (*at == '-')
			at++;
		sscanf(at, "%2hhx", &id[i]);
	}
	return 0;
}

int cuDeviceGetName(char *name, int n, int device) {
	(void)device;
	snprintf(name, n, "no GPU");
	return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
	(void)device;
	*context = 0;
	return 0;
}

int cuCtxSetCurrent(void *context) { return context != 0; }

int cuMemAlloc_v2(unsigned long long *memory, size_t n) {
	*memory = (unsigned long long)malloc(n);
	return 0;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t n) {
	memcpy((void *)to, from, n);
	return 0;
}

int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t n) {
	memcpy(to, (void *)from, n);
	return 0;
}

int cuModuleLoadData(void **module, const void *image) {
	(void)image;
	*module = 0;
	return 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
	(void)module;
	*function = 0;
	return strcmp(name, "inc") != 0;
}

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
		   void *stream, void **args, void **extra) {
	(void)f, (void)gx, (void)gy, (void)gz, (void)by, (void)bz, (void)shared, (void)stream, (void)extra;
	unsigned *numbers = (unsigned *)*(unsigned long long *)args[0];
	for (unsigned i = 0; i < bx; i++)
		numbers[i]++;
	return 0;
}

int cuCtxSynchronize(void) { return 0; }

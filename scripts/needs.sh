# Sourced: what the tests need of Debian's packages.

tests_need() {
	need gcc:gcc libc6-dev:/usr/include/stdio.h libseccomp-dev:/usr/include/seccomp.h \
		runc:runc crun:crun busybox-static:/bin/busybox docker-registry:docker-registry skopeo:skopeo \
		e2fsprogs:mkfs.ext4 xfsprogs:mkfs.xfs iproute2:ip nftables:nft iptables:iptables slirp4netns:slirp4netns passt:pasta \
		uidmap:newuidmap strace:strace qemu-system-x86:qemu-system-x86_64 qemu-system-arm:qemu-system-aarch64 qemu-user-static:qemu-aarch64-static docker.io:dockerd podman:podman catatonit:/usr/libexec/podman/catatonit netavark:/usr/lib/podman/netavark cpio:cpio procps:ps \
		dropbear-bin:dropbear openssh-client:ssh
}

# What scripts/package packs, and how; sourced by it. Uses its $built, $out, $trees and $version.

# packages: .deb files and tarballs of client and server.
packages() {
    client_tree "$trees/client"
    server_tree "$trees/server"
    cp -r "$trees/client" "$trees/both"
    cp -r "$trees/server/." "$trees/both"
    tarball "farcall-client-$version-x86_64" "$trees/client"
    tarball "farcall-server-$version-x86_64" "$trees/both"
    deb farcall "$trees/client" "libc6 (>= $GLIBC_MAX)" "CUDA programs on machines without a GPU"
    install -Dm 755 packaging/server.postinst "$trees/server/DEBIAN/postinst"
    install -Dm 755 packaging/server.prerm "$trees/server/DEBIAN/prerm"
    deb farcall-server "$trees/server" "farcall (= $version), passwd" "GPUs for programs on other machines"
}

# acceptance: what scripts/gpu-acceptance needs on a machine with a GPU, in one tarball.
acceptance() {
    local name=farcall-$version-x86_64 root=$trees/acceptance program bytes
    mkdir -p "$root"/{bin,lib/farcall,programs,scripts}
    install -s "$built/farcall" "$built/acceptance" "$root/bin"
    install -s "$built/libcuda.so" "$root/lib/farcall/libcuda.so.1"
    install -s "$built/libnvidia_ml.so" "$root/lib/farcall/libnvidia-ml.so.1"
    for program in suite-13-static suite-12-static threads-13-static; do
        install -s "$PROGRAMS/$program" "$root/programs"
    done
    install scripts/gpu-acceptance "$root/scripts"
    cp LICENSE-* README.md CHANGELOG.md "$root"
    git rev-parse HEAD >"$root/COMMIT"
    tarball "$name" "$root"
    bytes=$(stat -c %s "$out/$name.tar.xz")
    [ "$bytes" -le "$PACKAGE_BYTES_MAX" ] || die "$out/$name.tar.xz has $bytes bytes, more than $PACKAGE_BYTES_MAX"
}

# client_tree ROOT: what a client needs, under ROOT as under /.
client_tree() {
    local root=$1 doc=$1/usr/share/doc/farcall
    install -Ds "$built/farcall" "$root/usr/bin/farcall"
    install -Ds "$built/libcuda.so" "$root/usr/lib/farcall/libcuda.so.1"
    install -Ds "$built/libnvidia_ml.so" "$root/usr/lib/farcall/libnvidia-ml.so.1"
    mkdir -p "$root"/usr/share/{man/man1,doc/farcall,bash-completion/completions,zsh/vendor-completions}
    "$built/farcall" man "$root/usr/share/man/man1"
    gzip -9n "$root"/usr/share/man/man1/*
    "$built/farcall" completions bash >"$root/usr/share/bash-completion/completions/farcall"
    "$built/farcall" completions zsh >"$root/usr/share/zsh/vendor-completions/_farcall"
    cp README.md CHANGELOG.md docs/*.md "$doc"
    { printf 'Farcall is licensed under MIT OR Apache-2.0, at your choice.\n\n' && cat LICENSE-MIT LICENSE-APACHE; } >"$doc/copyright"
    chmod -R u=rwX,go=rX "$root"
}

# server_tree ROOT: what a server or a pool needs beside that.
server_tree() {
    local root=$1 file
    for file in farcall-server farcall-pool; do
        install -Dm 644 "packaging/$file.service" "$root/lib/systemd/system/$file.service"
    done
    for file in server pool; do
        install -Dm 640 "packaging/$file.env" "$root/etc/farcall/$file.env"
    done
    install -Dm 644 "$trees/client/usr/share/doc/farcall/copyright" "$root/usr/share/doc/farcall-server/copyright"
    # Where mkdir made folders, with whatever mask.
    find "$root" -type d -exec chmod 755 {} +
}

# tarball NAME TREE: NAME.tar.xz of a tree; the same every time.
tarball() {
    local file=$out/$1.tar.xz
    tar -C "$2" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(commit_time)" \
        --transform "s,^\.,$1," -c . | xz "-$XZ_LEVEL" -T0 >"$file"
    note "$file: $(stat -c %s "$file") bytes"
}

# deb NAME TREE DEPENDS DESCRIPTION: NAME_VERSION_amd64.deb of a tree; the same every time.
deb() {
    local name=$1 tree=$2 depends=$3 description=$4 file=$out/${1}_${version}_amd64.deb
    mkdir -p "$tree/DEBIAN"
    cat >"$tree/DEBIAN/control" <<CONTROL
Package: $name
Version: $version
Section: utils
Priority: optional
Architecture: amd64
Depends: $depends
Installed-Size: $(du -sk --exclude DEBIAN "$tree" | cut -f1)
Maintainer: Farcall <farcall@localhost>
Description: $description
 Farcall runs unmodified CUDA programs on machines without a GPU: its libcuda.so.1 sends the driver calls to servers that
 have GPUs.
CONTROL
    [ ! -d "$tree/etc" ] || (cd "$tree" && find etc -type f -printf '/%p\n') | sort >"$tree/DEBIAN/conffiles"
    # Older dpkg reads xz, not zstd.
    SOURCE_DATE_EPOCH=$(commit_time) dpkg-deb --root-owner-group -Zxz "-z$XZ_LEVEL" --build "$tree" "$file" >/dev/null
    note "$file: $(stat -c %s "$file") bytes"
}

commit_time() { git log -1 --format=%ct; }

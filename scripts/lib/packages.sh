# Packages for people who install Farcall; sourced after common.sh. Each takes the folder BUILT with what was built.

# client_tree ROOT BUILT: what a client needs, under ROOT as under /.
client_tree() {
    local root=$1 built=$2
    install -Ds "$built/farcall" "$root/usr/bin/farcall"
    install -Ds "$built/libcuda.so" "$root/usr/lib/farcall/libcuda.so.1"
    install -Ds "$built/libnvidia_ml.so" "$root/usr/lib/farcall/libnvidia-ml.so.1"
    mkdir -p "$root"/usr/share/{man/man1,doc/farcall,bash-completion/completions,zsh/vendor-completions}
    "$built/farcall" man "$root/usr/share/man/man1"
    gzip -9n "$root"/usr/share/man/man1/*
    "$built/farcall" completions bash >"$root/usr/share/bash-completion/completions/farcall"
    "$built/farcall" completions zsh >"$root/usr/share/zsh/vendor-completions/_farcall"
    cp "$REPO"/LICENSE* "$REPO/README.md" "$REPO/CHANGELOG.md" "$REPO"/docs/*.md "$root/usr/share/doc/farcall" 2>/dev/null || true
    chmod -R u=rwX,go=rX "$root"
}

# server_tree ROOT: what a server or a pool needs beside that.
server_tree() {
    local root=$1 file
    for file in farcall-server farcall-pool; do
        install -Dm 644 "$REPO/packaging/$file.service" "$root/lib/systemd/system/$file.service"
    done
    for file in server pool; do
        install -Dm 640 "$REPO/packaging/$file.env" "$root/etc/farcall/$file.env"
    done
}

# tarball NAME TREE: dist/NAME.tar.xz of a tree; the same every time.
tarball() {
    local name=$1 tree=$2
    tar -C "$tree" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
        --transform "s,^\.,$name," -c . | xz -6 -T0 >"dist/$name.tar.xz"
    note "dist/$name.tar.xz: $(stat -c %s "dist/$name.tar.xz") bytes"
}

# deb NAME VERSION TREE DEPENDS DESCRIPTION: dist/NAME_VERSION_amd64.deb of a tree.
deb() {
    local name=$1 version=$2 tree=$3 depends=$4 description=$5
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
    (cd "$tree" && find etc -type f -printf '/%p\n' 2>/dev/null) | sort >"$tree/DEBIAN/conffiles"
    [ -s "$tree/DEBIAN/conffiles" ] || rm "$tree/DEBIAN/conffiles"
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) dpkg-deb --root-owner-group -Zxz --build "$tree" \
        "dist/${name}_${version}_amd64.deb" >/dev/null
    note "dist/${name}_${version}_amd64.deb: $(stat -c %s "dist/${name}_${version}_amd64.deb") bytes"
}

# packages BUILT VERSION: .deb files and tarballs of client and server.
packages() {
    local built=$1 version=$2 trees
    trees=$(mktemp -d)
    client_tree "$trees/client" "$built"
    server_tree "$trees/server"
    cp -r "$trees/client" "$trees/both"
    cp -r "$trees/server/." "$trees/both"
    tarball "farcall-client-$version-x86_64" "$trees/client"
    tarball "farcall-server-$version-x86_64" "$trees/both"
    deb farcall "$version" "$trees/client" "libc6 (>= $GLIBC_MAX)" "CUDA programs on machines without a GPU"
    install -Dm 755 packaging/server.postinst "$trees/server/DEBIAN/postinst"
    install -Dm 755 packaging/server.prerm "$trees/server/DEBIAN/prerm"
    deb farcall-server "$version" "$trees/server" "farcall (= $version), passwd" "GPUs for programs on other machines"
    rm -rf "$trees"
}

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestModulesFor(t *testing.T) {
	list := filepath.Join(t.TempDir(), "aliases")
	text := "block-major-7-* loop\nnft-chain-2-nat nft_chain_nat\ncrypto-ctr(aes) ctr\nrtnl-link-bridge bridge\nfs-ext3 ext4\nfs-ext3 ext3_too\nbroken\n"
	if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"nf_tables":       {"nf_tables"},
		"nf-tables":       {"nf_tables"},
		"block-major-7-3": {"block_major_7_3", "loop"},
		"block-major-8-3": {"block_major_8_3"},
		"nft-chain-2-nat": {"nft_chain_2_nat", "nft_chain_nat"},
		"crypto-ctr(aes)": {"crypto_ctr(aes)", "ctr"},
		"fs-ext3":         {"fs_ext3", "ext4", "ext3_too"},
		"*":               {"*"},
		"":                {""},
	} {
		if got, err := modulesFor(list, name); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := modulesFor(list+"-none", "x"); err == nil {
		t.Error("no list: no error")
	}
}

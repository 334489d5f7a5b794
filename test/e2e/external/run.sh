#!/bin/sh
# Runs Kubernetes' own tests of volumes against the plugin, in the cluster of
# hack/cluster, and prints how many passed, failed and were skipped.
#
#   run.sh [WHICH]    only those whose name has what this regular expression says,
#                     such as volume-expand
#
# $REPORTS is the directory for junit_01.xml and the log; bin/e2e-external otherwise.
set -eu
cd "$(dirname "$0")"
repository=$(cd ../../.. && pwd)
REPORTS=${REPORTS:-$repository/bin/e2e-external}
mkdir -p "$REPORTS"

(cd "$repository/hack/cluster" && go run . load-e2e)
eval "$(cd "$repository/hack/cluster" && go run . env)"

driver='External.Storage.*csi\.rawblock\.dev'
# The plugin has no filesystem volumes, which is what most patterns are about. Of
# those that are, one makes no volume: that of the storage capacity.
focus="$driver.*(block volmode|capacity provides).*(${1:-})"
# Disruptive tests reach the nodes by ssh and end kubelet by systemctl; the nodes of
# hack/cluster have neither, and the tests in .. do the same. A test with both volume
# modes needs a filesystem volume.
skip='\[Disruptive\]|different volume mode .* on the same node'

e2e() {
	e2e.test -storage.testdriver=testdriver.yaml --repo-root="$PWD" \
		--kubeconfig="$KUBECONFIG" --kubectl-path="$(command -v kubectl)" \
		--provider=skeleton --num-nodes=2 --allowed-not-ready-nodes=0 --minStartupPods=1 --disable-log-dump \
		-ginkgo.no-color -ginkgo.silence-skips "$@"
}

report=$REPORTS/junit_01.xml
rm -f "$report"
status=0
start=$(date +%s)
e2e -ginkgo.v -ginkgo.focus="$focus" -ginkgo.skip="$skip" --report-dir="$REPORTS" \
	>"$REPORTS/e2e.log" 2>&1 || status=$?
took=$(($(date +%s) - start))

# Nothing was run: the log says why.
[ -s "$report" ] || { tail -n 40 "$REPORTS/e2e.log"; exit 1; }

# A test has its name and state on one line. One that was not chosen says "skipped"
# in the next, and no more; one that skips itself says why.
cases() { grep "<testcase name=\"\[It\] .*External Storage \[Driver: csi.rawblock.dev\]" "$report" | grep -E "status=\"($1)\""; }
names() { sed -E 's/.*\[Testpattern: (.*)" classname=.*time="([0-9]+)[.0-9]*".*/  [\1 (\2 s)/'; }
broken='failed|panicked|timedout|interrupted|aborted'
echo "passed:"
cases passed | names | sort
echo "skipped, by the tests themselves:"
grep -A1 "<testcase name=\"\[It\] .*status=\"skipped\"" "$report" | grep -oE 'message="skipped - [^"]*"' |
	sed -E "s/message=\"skipped - (.*)\"/\1/; s/&#34;/\"/g; s/&#39;/'/g" | sort | uniq -c
echo "failed:"
cases "$broken" | names | sort
printf '%s passed, %s failed, %s skipped; %s s; the log and junit_01.xml are in %s\n' \
	"$(cases passed | wc -l)" "$(cases "$broken" | wc -l)" \
	"$(grep -cE 'message="skipped - ' "$report" || true)" "$took" "$REPORTS"
exit "$status"

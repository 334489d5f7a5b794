{{- /* Why each object is as it is stands in deploy/kubernetes, of which these templates
are a copy with variables: the tests compare them. The names are fixed, as the driver
can be in a cluster only once. */ -}}

{{- define "rawblock.labels" -}}
app.kubernetes.io/name: rawblock-csi
app.kubernetes.io/part-of: rawblock-csi
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "rawblock.podLabels" -}}
app.kubernetes.io/name: rawblock-csi
app.kubernetes.io/part-of: rawblock-csi
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "rawblock.pluginDir" -}}
{{ .Values.kubeletDir }}/plugins/csi.rawblock.dev
{{- end }}

{{- /* The folder of the pools that is mounted always. */ -}}
{{- define "rawblock.dataDir" -}}
/var/lib/rawblock-csi
{{- end }}

{{- /* Where the keys are mounted that StorageClasses name. */ -}}
{{- define "rawblock.keyDir" -}}
/etc/rawblock-keys
{{- end }}

{{- define "rawblock.config" -}}
{{- $hotplug := dict "attachmentPods" (and .Values.hotplug.enabled .Values.hotplug.attachmentPods) -}}
{{- if and .Values.hotplug.enabled .Values.hotplug.criSocket -}}
{{- $_ := set $hotplug "criSocket" .Values.hotplug.criSocket -}}
{{- end -}}
{{- $own := dict "controllerExpansion" false "hotplug" $hotplug -}}
{{- if .Values.encryption.enabled -}}
{{- $_ := set $own "encryption" (dict "keyDirectory" (include "rawblock.keyDir" .)) -}}
{{- end -}}
{{- merge $own .Values.config | toYaml -}}
{{- end }}

{{- /* What the schema cannot say. */ -}}
{{- define "rawblock.check" -}}
{{- $pools := list -}}
{{- $files := false -}}
{{- range .Values.config.pools -}}
{{- $pools = append $pools .name -}}
{{- if hasKey . "file" -}}{{- $files = true -}}{{- end -}}
{{- end -}}
{{- if and .Values.provisioning.enabled (not $pools) -}}
{{- fail "provisioning.enabled: config.pools is empty, so that csi-provisioner would end and be started again for ever; set provisioning.enabled=false" -}}
{{- end -}}
{{- if and .Values.snapshots.enabled (not $files) -}}
{{- fail "snapshots.enabled: no pool of config.pools is of kind file, and no other makes snapshots; csi-snapshotter would end and be started again for ever" -}}
{{- end -}}
{{- if and .Values.snapshots.enabled (not .Values.provisioning.enabled) -}}
{{- fail "snapshots.enabled: csi-provisioner makes the volumes of snapshots; set provisioning.enabled=true" -}}
{{- end -}}
{{- range .Values.storageClasses -}}
{{- $pool := get (get . "parameters" | default dict) "pool" -}}
{{- if and $pool (not (has $pool $pools)) -}}
{{- fail (printf "storageClasses: class %s is of pool %q, and config.pools has %s" .name $pool (join ", " $pools)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "rawblock.sidecarSecurity" -}}
runAsUser: 0
runAsGroup: 0
capabilities:
  drop:
  - ALL
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "rawblock.sidecarMounts" -}}
- name: plugin-dir
  mountPath: /csi
- name: kube-api-access
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end }}

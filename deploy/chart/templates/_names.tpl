{{/* There can be one driver of a name in a cluster, so names don't depend on the release's. */}}
{{- define "driver" -}}block.csi.vultr.com{{- end }}

{{- define "labels" -}}
app.kubernetes.io/name: cloud-block-csi
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end }}

{{/* Whether an object is to be rendered: it is not there, or it is this release's. Call: list . APIVERSION KIND NAME */}}
{{- define "ours" -}}
{{- $root := index . 0 -}}
{{- $there := lookup (index . 1) (index . 2) "" (index . 3) -}}
{{- $by := dig "metadata" "annotations" (dict) ($there | default dict) -}}
{{- $release := get $by "meta.helm.sh/release-name" -}}
{{- $namespace := get $by "meta.helm.sh/release-namespace" -}}
{{- if or (not $there) (and (eq $release $root.Release.Name) (eq $namespace $root.Release.Namespace)) -}}yes{{- end -}}
{{- end }}

{{/* The leases: each sidecar's, by the name that it gives it, and the driver's own. */}}
{{- define "leases" -}}
{{- $driver := include "driver" . | replace "." "-" -}}
{{- $names := list $driver (printf "external-attacher-leader-%s" $driver) (printf "external-resizer-%s" $driver) -}}
{{- if .Values.sidecars.snapshotter.enabled }}{{ $names = append $names (printf "external-snapshotter-leader-%s" $driver) }}{{ end -}}
{{- if include "leased" . }}{{ $names = append $names (include "lease" .) }}{{ end -}}
{{- join " " $names -}}
{{- end }}

{{- define "lease" -}}cloud-block-csi-controller{{- end }}

{{/* Whether the driver holds a lease. With no replicas, whether it does as it is: those that end need theirs until they have. */}}
{{- define "leased" -}}
{{- $set := lookup "apps/v1" "StatefulSet" .Release.Namespace "cloud-block-csi-controller" | default dict -}}
{{- $replicas := int .Values.controller.replicas -}}
{{- if or (gt $replicas 1) (and (eq $replicas 0) (contains "--lease=" (toJson $set))) -}}yes{{- end -}}
{{- end }}

{{/* What both pods of the driver are told */}}
{{- define "settings" -}}
{{- with .Values.logLevel }}
- --log-level={{ . }}
{{- end }}
{{- with .Values.otlpEndpoint }}
- --otlp-endpoint={{ . }}
{{- end }}
{{- end }}

{{- define "sidecar-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
The chart's name, for labels.
*/}}
{{- define "claviger.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/*
The name of the install. Cluster-scoped objects carry it too, so that two installs can live in one
cluster. No longer than 52 characters: a Deployment's pods append 11 or more.
*/}}
{{- define "claviger.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The name of the install and a suffix, cut so that both fit 63 characters and the suffix stays whole.
Takes a list of the context and the suffix.
*/}}
{{- define "claviger.suffixed" -}}
{{- $context := index . 0 }}
{{- $suffix := index . 1 }}
{{- $fullname := include "claviger.fullname" $context }}
{{- printf "%s-%s" ($fullname | trunc (int (sub 62 (len $suffix))) | trimSuffix "-") $suffix }}
{{- end }}

{{/*
The namespace of the controller: its "system namespace".
*/}}
{{- define "claviger.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "claviger.selectorLabels" -}}
app.kubernetes.io/name: {{ include "claviger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "claviger.serverSelectorLabels" -}}
app.kubernetes.io/name: {{ include "claviger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/*
What the pods of both halves have in common.
*/}}
{{- define "claviger.bothSelectorLabels" -}}
app.kubernetes.io/name: {{ include "claviger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/*
Labels that the user wants on everything; the chart's own win over the parent chart's.
*/}}
{{- define "claviger.commonLabels" -}}
{{- $labels := mergeOverwrite (dict) (default (dict) .Values.global.commonLabels) .Values.commonLabels }}
{{- with $labels }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- define "claviger.labels" -}}
{{ include "claviger.selectorLabels" . }}
{{ include "claviger.aboutLabels" . }}
{{- end }}

{{- define "claviger.serverLabels" -}}
{{ include "claviger.serverSelectorLabels" . }}
{{ include "claviger.aboutLabels" . }}
{{- end }}

{{- define "claviger.aboutLabels" -}}
app.kubernetes.io/part-of: claviger
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with include "claviger.commonLabels" . }}
{{ . }}
{{- end }}
{{- end }}

{{- define "claviger.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "claviger.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false: the chart's policies are bound to a ServiceAccount of the controller's own, never to one that others use" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/*
The server's account: it reads two Secrets, and nothing of what the controller may.
*/}}
{{- define "claviger.serverServiceAccountName" -}}
{{- if .Values.server.serviceAccount.create }}
{{- default (include "claviger.suffixed" (list . "server")) .Values.server.serviceAccount.name }}
{{- else }}
{{- required "server.serviceAccount.name is needed when server.serviceAccount.create is false" .Values.server.serviceAccount.name }}
{{- end }}
{{- end }}

{{/*
What the apiserver calls the controller.
*/}}
{{- define "claviger.username" -}}
{{- printf "system:serviceaccount:%s:%s" (include "claviger.namespace" .) (include "claviger.serviceAccountName" .) }}
{{- end }}

{{- define "claviger.leaseName" -}}
{{- default (include "claviger.suffixed" (list . "controller")) .Values.leaderElection.leaseName }}
{{- end }}

{{- define "claviger.image" -}}
{{- $registry := default (default "" .Values.global.imageRegistry) .Values.image.registry }}
{{- $image := .Values.image.repository }}
{{- with $registry }}
{{- $image = printf "%s/%s" (. | trimSuffix "/") $image }}
{{- end }}
{{- if or .Values.image.tag (not .Values.image.digest) }}
{{- $image = printf "%s:%s" $image (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- with .Values.image.digest }}
{{- $image = printf "%s@%s" $image . }}
{{- end }}
{{- $image }}
{{- end }}

{{/*
The namespaces that the controller works in, as a JSON object {"namespaces": [...]}; empty for all.
*/}}
{{- define "claviger.scope" -}}
{{- if eq .Values.scope.mode "namespaces" }}
{{- if not .Values.scope.namespaces }}
{{- fail "scope.namespaces is empty: name the namespaces that Claviger shall work in, or set scope.mode to cluster" }}
{{- end }}
{{- dict "namespaces" (uniq .Values.scope.namespaces) | toJson }}
{{- else }}
{{- if .Values.scope.namespaces }}
{{- fail "scope.namespaces has no effect when scope.mode is cluster: set scope.mode to namespaces, or leave the list out" }}
{{- end }}
{{- dict "namespaces" (list) | toJson }}
{{- end }}
{{- end }}

{{/*
"yes" when an object of another project's kind shall be rendered. Takes a list of the context, the
kind's renderMode, its apiVersion/Kind and the value that asks for it.
*/}}
{{- define "claviger.renders" -}}
{{- $context := index . 0 }}
{{- $mode := index . 1 }}
{{- $kind := index . 2 }}
{{- $value := index . 3 }}
{{- if eq $mode "alwaysRender" -}}
yes
{{- else if $context.Capabilities.APIVersions.Has $kind -}}
yes
{{- else if eq $mode "failIfMissing" }}
{{- fail (printf "%s is enabled, but the cluster does not serve %s: install the Prometheus operator's CRDs first, or set %s.renderMode to skipIfMissing" $value $kind $value) }}
{{- end }}
{{- end }}

{{/*
The rules of the controller in a namespace that it works in. The same text makes a ClusterRole or
one Role per namespace, so that the two modes cannot differ.
*/}}
{{- define "claviger.workingRules" -}}
# The declared keys: what Claviger acts on. It never writes a spec or metadata.
- apiGroups: [claviger.dev]
  resources: [functionkeys]
  verbs: [get, list, watch]
# The declared vaults. `patch` is for the finalizer, by which a deletion waits while secrets live; a
# policy of this chart refuses Claviger any other change.
- apiGroups: [claviger.dev]
  resources: [secretvaults]
  verbs: [get, list, watch, patch]
# Where it says how each vault fares.
- apiGroups: [claviger.dev]
  resources: [secretvaults/status]
  verbs: [patch]
# Whether the namespace of a vault is being deleted: then the vault's finalizer does not hold it up.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
# Who may do what, as declared. `patch` is for the finalizer of those that reach beyond their namespace;
# a policy of this chart refuses Claviger any other change.
- apiGroups: [claviger.dev]
  resources: [roleassignments]
  verbs: [get, list, watch, patch]
# Where it says what each of them comes to.
- apiGroups: [claviger.dev]
  resources: [roleassignments/status]
  verbs: [patch]
# What RoleAssignments become. A policy of this chart refuses Claviger any that it did not make for one,
# and the apiserver any that would grant what Claviger does not hold.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
{{- range $resource, $verbs := include "claviger.dataPlane" . | fromJson }}
# Held in order to be granted: what built-in roles permit. It is not used; the doors refuse Claviger.
- apiGroups: [claviger.dev]
  resources: [{{ $resource }}]
  verbs: [{{ join ", " $verbs }}]
{{- end }}
# Where it says how each key fares.
- apiGroups: [claviger.dev]
  resources: [functionkeys/status]
  verbs: [patch]
# The apps' key stores and the clients' copies, the vaults' ciphertext and what they synchronise. RBAC cannot tell a Secret with our label from
# another, so the rule reads wider than what is done: the content of a Secret without our label is
# read only by name, when a FunctionKey or SecretVault names it, and a policy of this chart refuses Claviger any
# write to a Secret that does not carry its label, or is of a type that is not for applications.
#   get         the store, copies and sources that a FunctionKey names, the sources and targets that
#               a SecretVault names, a version whose payload is to be opened
#   list, watch labelled Secrets whole, of all others the metadata only
#   create      a store, copy or target that is missing; a version of a secret; a vault's key ring
#   patch       one entry, never the whole object; the wrapped key of a version, in its metadata
#   delete      a store, copy or target that Claviger made and that holds nothing any more; a version
#               that was purged
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# The same for apps that keep their keys in a ConfigMap (storage.configMap with allowInsecure); and the
# ConfigMap claviger-ca, in which what clients shall trust is published.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
# Restarts of clients after a turn and of apps after a revocation. A policy of this chart holds
# the write to one annotation of the pod template.
- apiGroups: [apps]
  resources: [deployments, statefulsets, daemonsets]
  verbs: [get, patch]
# What a person should notice: rotation, revocation, adoption, refusal, conflict. `patch` raises
# the count of an event that repeats.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/*
Where the server is found, for SDKs: AZURE_AUTHORITY_HOST.
*/}}
{{- define "claviger.authority" -}}
{{- $host := default (printf "%s.%s.svc" (include "claviger.fullname" .) (include "claviger.namespace" .)) .Values.server.name }}
{{- $port := int .Values.server.service.port }}
{{- if eq $port 443 }}
{{- printf "https://%s/" $host }}
{{- else }}
{{- printf "https://%s:%d/" $host $port }}
{{- end }}
{{- end }}

{{/*
Whether labelled pods are given their identity by a policy: where the cluster serves them.
*/}}
{{- define "claviger.podIdentity" -}}
{{- $wish := toString .Values.podIdentity.enabled }}
{{- if eq $wish "auto" }}
{{- .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" }}
{{- else }}
{{- $wish }}
{{- end }}
{{- end }}

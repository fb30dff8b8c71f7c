{{- define "busq.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "busq.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What never changes in the life of a release: selectors are immutable. Called with root, component and pool. */ -}}
{{- define "busq.selector" -}}
app.kubernetes.io/name: {{ include "busq.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
busq.io/pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "busq.labels" -}}
{{ include "busq.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: busq
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* A pool with everything that it leaves out, as YAML. Called with root and name. */ -}}
{{- define "busq.pool" -}}
{{- $own := index .root.Values.pools .name | default dict -}}
{{- mergeOverwrite (deepCopy .root.Values.poolDefaults) (deepCopy $own) | toYaml -}}
{{- end -}}

{{- define "busq.image" -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (deepCopy (default dict .own)) -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) }}
{{- end -}}
{{- end -}}

{{- define "busq.pullPolicy" -}}
{{- (mergeOverwrite (deepCopy .root.Values.image) (deepCopy (default dict .own))).pullPolicy -}}
{{- end -}}

{{- define "busq.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "busq.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "busq.urlSecret" -}}
{{- if .Values.redis.existingSecret.name -}}
{{ .Values.redis.existingSecret.name }}
{{- else -}}
{{ include "busq.fullname" . }}-redis
{{- end -}}
{{- end -}}

{{- /* The user of a role: its own, else that of the workers. Called with root and role. As YAML. */ -}}
{{- define "busq.user" -}}
{{- $users := .root.Values.redis.users -}}
{{- $own := index $users .role -}}
{{- ternary $own $users.worker (ne $own.name "") | toYaml -}}
{{- end -}}

{{- /* The environment by which every busq process finds its bus. Called with root and role. */ -}}
{{- define "busq.busEnv" -}}
{{- $redis := .root.Values.redis -}}
{{- if and $redis.url $redis.existingSecret.name -}}
{{- fail "redis.url and redis.existingSecret.name are both given: one of them says where Redis is" -}}
{{- end -}}
{{- if or $redis.url $redis.existingSecret.name -}}
{{- if $redis.users.worker.name -}}
{{- fail "redis.users go with redis.hosts: a whole URL carries its own user" -}}
{{- end -}}
- name: BUSQ_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "busq.urlSecret" .root }}
      key: {{ ternary $redis.existingSecret.key "url" (ne $redis.existingSecret.name "") }}
{{- else -}}
{{- if not $redis.hosts -}}
{{- fail "where is Redis? Give redis.hosts, redis.url or redis.existingSecret.name" -}}
{{- end -}}
{{- $user := include "busq.user" . | fromYaml -}}
{{- $login := "" -}}
{{- if $user.name -}}
{{- if not $user.existingSecret -}}
{{- fail (printf "redis.users: %q has no existingSecret with its password" $user.name) -}}
{{- end -}}
{{- $login = printf "%s:$(BUSQ_REDIS_PASSWORD)@" $user.name -}}
- name: BUSQ_REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $user.existingSecret }}
      key: {{ $user.passwordKey }}
{{ end -}}
{{- $tls := ternary "rediss" "redis" $redis.tls.enabled -}}
{{- $hosts := join "," $redis.hosts -}}
- name: BUSQ_URL
{{- if eq $redis.topology "cluster" }}
  value: {{ printf "%s+cluster://%s%s" $tls $login $hosts | quote }}
{{- else if eq $redis.topology "sentinel" }}
  value: {{ printf "%s+sentinel://%s%s/%s/%v" $tls $login $hosts $redis.service $redis.database | quote }}
{{- else }}
{{- if gt (len $redis.hosts) 1 }}
{{- fail "redis.hosts has several hosts: redis.topology must be sentinel or cluster then" }}
{{- end }}
  value: {{ printf "%s://%s%s/%v" $tls $login $hosts $redis.database | quote }}
{{- end }}
{{- end }}
- name: BUSQ_HOST
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: BUSQ_NAMESPACE
  value: {{ .root.Values.bus.namespace | quote }}
{{- with .root.Values.bus.shards }}
- name: BUSQ_SHARDS
  value: {{ . | quote }}
{{- end }}
{{- if $redis.tls.enabled }}
{{- if and $redis.tls.existingSecret $redis.tls.caKey }}
- name: BUSQ_TLS_CA_FILE
  value: /etc/busq/tls/{{ $redis.tls.caKey }}
{{- end }}
{{- if and $redis.tls.existingSecret $redis.tls.certKey }}
- name: BUSQ_TLS_CERT_FILE
  value: /etc/busq/tls/{{ $redis.tls.certKey }}
- name: BUSQ_TLS_KEY_FILE
  value: /etc/busq/tls/{{ required "redis.tls.certKey needs redis.tls.keyKey" $redis.tls.keyKey }}
{{- end }}
{{- end }}
{{- range $name, $value := .root.Values.settings.environment }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{- define "busq.settingsEnv" -}}
- name: BUSQ_BEAT_S
  value: {{ .Values.settings.beatSeconds | quote }}
- name: BUSQ_LEASE_S
  value: {{ .Values.settings.leaseSeconds | quote }}
- name: BUSQ_WATCHDOG_INTERVAL_S
  value: {{ .Values.settings.watchdogIntervalSeconds | quote }}
- name: BUSQ_FORCE_S
  value: {{ .Values.settings.forceSeconds | quote }}
- name: BUSQ_HOOK_LIMIT_S
  value: {{ .Values.settings.hookSeconds | quote }}
{{- end -}}

{{- define "busq.tlsVolume" -}}
{{- if and .Values.redis.tls.enabled .Values.redis.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ .Values.redis.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "busq.tlsMount" -}}
{{- if and .Values.redis.tls.enabled .Values.redis.tls.existingSecret }}
- name: tls
  mountPath: /etc/busq/tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "busq.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurityContext.runAsUser }}
runAsGroup: {{ .Values.podSecurityContext.runAsGroup }}
fsGroup: {{ .Values.podSecurityContext.fsGroup }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "busq.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Jobs at once in one pod of a pool. */ -}}
{{- define "busq.room" -}}
{{- mul .concurrency .processes -}}
{{- end -}}

{{- /*
What a pod needs to be taken down: the drain asked for (5 s), jobs that end, then the longest of what a cancel or a
clean-up takes with force and kill (2 s), a hook that runs, what is told to Redis (5 s), the supervisor's margin (10 s),
and a watchdog that looks once more (5 s). Called with root and pool.
*/ -}}
{{- define "busq.needsSeconds" -}}
{{- $pool := .pool -}}
{{- $last := max (float64 $pool.cleanupSeconds) (float64 $pool.graceSeconds) -}}
{{- $supervisor := ternary 10 0 (gt (int $pool.processes) 1) -}}
{{- ceil (addf 5 $pool.drainSeconds $last .root.Values.settings.forceSeconds 1 .root.Values.settings.hookSeconds 5 $supervisor 5) | int -}}
{{- end -}}

{{- define "busq.graceSeconds" -}}
{{- $needs := include "busq.needsSeconds" . | int -}}
{{- $given := .pool.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{ $needs }}
{{- else if lt (int $given) $needs -}}
{{- fail (printf "pools.%s.terminationGracePeriodSeconds is %d, and by its other values a pod needs %d: jobs would be killed in their drain. Lower drainSeconds, or leave it out" .name (int $given) $needs) -}}
{{- else -}}
{{ int $given }}
{{- end -}}
{{- end -}}

{{- define "busq.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "busq.selector" . | nindent 6 }}
{{- end -}}

{{- /* The watchdog's container. Called with root. */ -}}
{{- define "busq.watchdog" -}}
{{- $root := .root -}}
- name: watchdog
  image: {{ include "busq.image" (dict "root" $root "own" $root.Values.watchdog.image) | quote }}
  imagePullPolicy: {{ include "busq.pullPolicy" (dict "root" $root "own" $root.Values.watchdog.image) }}
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
  command:
    - busq
    - watchdog
    - --health-port={{ $root.Values.ports.watchdog }}
    {{- range $name, $_ := $root.Values.pools }}
    {{- $pool := include "busq.pool" (dict "root" $root "name" $name) | fromYaml }}
    - --pool={{ $name }}={{ include "busq.room" $pool }}:{{ join "," $pool.queues }}
    {{- end }}
  env:
    {{- include "busq.busEnv" (dict "root" $root "role" "watchdog") | nindent 4 }}
    {{- include "busq.settingsEnv" $root | nindent 4 }}
  ports:
    - name: watchdog
      containerPort: {{ $root.Values.ports.watchdog }}
  startupProbe:
    httpGet: {path: /startupz, port: watchdog}
    periodSeconds: 1
    failureThreshold: 120
  livenessProbe:
    httpGet: {path: /livez, port: watchdog}
    periodSeconds: 10
    timeoutSeconds: 3
  readinessProbe:
    httpGet: {path: /readyz, port: watchdog}
    periodSeconds: 5
    timeoutSeconds: 3
  resources:
    {{- toYaml $root.Values.watchdog.resources | nindent 4 }}
  securityContext:
    {{- include "busq.containerSecurity" $root | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    {{- include "busq.tlsMount" $root | nindent 4 }}
{{- end -}}

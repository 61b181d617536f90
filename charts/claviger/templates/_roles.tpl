{{/*
The built-in roles: the one table from which their ClusterRoles, the controller's own rights and the
policy for authors of RoleAssignments are made. The binary has the same table (src/domain/role.rs); a
test compares them. `to` names the roles of Kubernetes that a role is added to where
rbac.builtInRoles asks for it.
*/}}
{{- define "claviger.builtInRoles" -}}
- name: FunctionKeyReader
  suffix: function-key-reader
  what: Reads the keys of function apps, values included.
  to: [admin, edit]
  rules:
    - {resource: functionkeys, verbs: [get, list, watch], why: which keys there are}
    - {resource: functionkeys/value, verbs: [get, list], why: their values}
- name: FunctionKeyOperator
  suffix: function-key-operator
  what: Reads, makes, turns and removes the keys of function apps.
  to: [admin, edit]
  rules:
    - {resource: functionkeys, verbs: [get, list, watch], why: which keys there are}
    - {resource: functionkeys/value, verbs: [get, list, create, update, delete], why: their values}
- name: SecretVaultAdministrator
  suffix: secret-vault-administrator
  what: Does everything with the secrets of vaults, purging included.
  to: [admin]
  rules:
    - {resource: secretvaults, verbs: [get, list, watch], why: which vaults there are}
    - {resource: secretvaults/secrets, verbs: [get, list, create, update, delete, recover, backup, restore, purge], why: "their secrets: values, versions, attributes, deleted ones"}
- name: SecretVaultReader
  suffix: secret-vault-reader
  what: Sees which vaults and secrets there are, but no value.
  to: [admin, edit, view]
  rules:
    - {resource: secretvaults, verbs: [get, list, watch], why: which vaults there are}
    - {resource: secretvaults/secrets, verbs: [list], why: "names, dates and tags of their secrets"}
- name: SecretVaultSecretsOfficer
  suffix: secret-vault-secrets-officer
  what: Does everything with the secrets of vaults but purge them.
  to: [admin, edit]
  rules:
    - {resource: secretvaults, verbs: [get, list, watch], why: which vaults there are}
    - {resource: secretvaults/secrets, verbs: [get, list, create, update, delete, recover, backup, restore], why: "their secrets: values, versions, attributes, deleted ones"}
- name: SecretVaultSecretsUser
  suffix: secret-vault-secrets-user
  what: Reads the secrets of vaults.
  to: [admin, edit]
  rules:
    - {resource: secretvaults/secrets, verbs: [get, list], why: "values of their secrets, and which there are"}
- name: TokenProviderIssuer
  suffix: token-provider-issuer
  what: Has tokens issued.
  to: [admin, edit]
  rules:
    - {resource: tokenproviders/tokens, verbs: [create], why: new tokens}
- name: TokenProviderOperator
  suffix: token-provider-operator
  what: Has tokens issued, sees and revokes them.
  to: [admin, edit]
  rules:
    - {resource: tokenproviders, verbs: [get, list, watch], why: which providers there are}
    - {resource: tokenproviders/tokens, verbs: [create, list, delete], why: "new tokens, which there are, their revocation"}
- name: WebPubSubServiceOwner
  suffix: web-pubsub-service-owner
  what: Every data action of a Web PubSub service.
  to: [admin]
  rules:
    - {resource: tokenproviders/accesskey, verbs: [create], why: auth/accessKey/action}
    - {resource: tokenproviders/accesstoken, verbs: [create], why: auth/accessToken/action}
    - {resource: tokenproviders/clienttokens, verbs: [create], why: clientConnection/generateToken/action}
    - {resource: tokenproviders/connections, verbs: [get, update, send], why: "clientConnection/read, /write, /send/action"}
    - {resource: tokenproviders/groups, verbs: [get, update, send], why: "group/read, /write, /send/action"}
    - {resource: tokenproviders/hubs, verbs: [send], why: hub/send/action}
    - {resource: tokenproviders/livetrace, verbs: [get, update], why: "livetrace/read, /write"}
    - {resource: tokenproviders/users, verbs: [get, send], why: "user/read, /send/action"}
- name: WebPubSubServiceReader
  suffix: web-pubsub-service-reader
  what: The data actions of a Web PubSub service that read.
  to: [admin, edit, view]
  rules:
    - {resource: tokenproviders/connections, verbs: [get], why: clientConnection/read}
    - {resource: tokenproviders/groups, verbs: [get], why: group/read}
    - {resource: tokenproviders/livetrace, verbs: [get], why: livetrace/read}
    - {resource: tokenproviders/users, verbs: [get], why: user/read}
{{- end }}

{{/*
Everything that some built-in role permits, as a JSON object of resources and lists of verbs.
*/}}
{{- define "claviger.dataPlane" -}}
{{- $all := dict }}
{{- range include "claviger.builtInRoles" . | fromYamlArray }}
{{- range .rules }}
{{- $_ := set $all .resource (concat (default list (index $all .resource)) .verbs | uniq) }}
{{- end }}
{{- end }}
{{- toJson $all }}
{{- end }}

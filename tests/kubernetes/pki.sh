#!/usr/bin/env bash
# Makes the cluster's certificates and kubeconfigs, good for a day:
#     pki.sh FOLDER KUBECTL SERVER-ADDRESS NODE=ADDRESS...
set -euo pipefail
cd "$1"
kubectl=$2 server=$3
shift 3
new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

openssl req -x509 "${new[@]}" -days 1 -subj /CN=bed -keyout ca.key -out ca.crt 2>/dev/null
# certificate NAME SUBJECT [ALTERNATIVE-NAMES]
certificate() {
    openssl req "${new[@]}" -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -out "$1.crt" -extfile <(
        printf '%s\n' keyUsage=digitalSignature extendedKeyUsage=serverAuth,clientAuth ${3:+subjectAltName=$3}
    ) 2>/dev/null
}
# config NAME: for the certificate of that name
config() {
    local set=("$kubectl" "--kubeconfig=$1.kubeconfig" config)
    "${set[@]}" set-cluster bed "--server=https://$server" --certificate-authority=ca.crt --embed-certs >/dev/null
    "${set[@]}" set-credentials user "--client-certificate=$1.crt" "--client-key=$1.key" --embed-certs >/dev/null
    "${set[@]}" set-context bed --cluster=bed --user=user >/dev/null
    "${set[@]}" use-context bed >/dev/null
}
names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
certificate apiserver /CN=kube-apiserver "IP:$server,IP:127.0.0.1,IP:10.96.0.1,$names"
certificate admin /O=system:masters/CN=admin
certificate controller-manager /CN=system:kube-controller-manager
certificate scheduler /CN=system:kube-scheduler
for name in admin controller-manager scheduler; do config "$name"; done
for node in "$@"; do
    certificate "${node%=*}" "/O=system:nodes/CN=system:node:${node%=*}" "DNS:${node%=*},IP:127.0.0.1,IP:${node#*=}"
    config "${node%=*}"
done
openssl ecparam -name prime256v1 -genkey -noout -out accounts.key 2>/dev/null
openssl ec -in accounts.key -pubout -out accounts.pub 2>/dev/null
